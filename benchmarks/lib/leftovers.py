"""What rounds of versions leave behind, and how the memory of each program goes over them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import linregress, t

from benchmarks.lib.memory import own_memory_mib
from vlserve.drill.stack_programs import program_of
from vlserve.settings import Settings
from vlserve.stack import shared_memory
from vlserve.stack.stopping import processes

_WARM_UP = 0.25
"""Share of the rounds that a slope leaves out."""
_BLOCKS = 20


@dataclass(frozen=True)
class Inventory:
    """What a stack has at one moment, besides its models and its logs."""

    memory_mib: Mapping[str, float]
    """Of each program, see `own_memory_mib`."""
    processes: Mapping[str, int]
    open_files: Mapping[str, int]
    files: int
    """In state_dir, without logs."""
    sockets: int
    """Unix sockets that lie in a folder."""
    shared_memory: int
    """Regions of this stack's Triton in /dev/shm."""


@dataclass(frozen=True)
class Slope:
    """How the memory of one program goes, in MiB for a hundred rounds, with its 95 % interval."""

    start_mib: float
    end_mib: float
    per_100_rounds: float
    low: float
    high: float


def inventory(settings: Settings) -> Inventory:
    """Return what the stack of ``settings`` has now."""
    memory_mib: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    open_files: Counter[str] = Counter()
    for process in processes(settings):
        name = program_of(process) or "others"
        with suppress(psutil.Error, OSError):
            memory_mib[name] += own_memory_mib(process.pid)
            open_files[name] += process.num_fds()
            counts[name] += 1
    prefix = shared_memory.stack_prefix(settings.state_dir)
    ours = [path for path in _below(settings.state_dir) if "logs" not in path.parts]
    return Inventory(
        memory_mib=dict(sorted(memory_mib.items())),
        processes=dict(sorted(counts.items())),
        open_files=dict(sorted(open_files.items())),
        files=sum(path.is_file() for path in ours),
        sockets=sum(path.is_socket() for path in {*ours, *_below(settings.socket_dir)}),
        shared_memory=len(list(shared_memory.FOLDER.glob(f"{prefix}*"))),
    )


def slopes(rounds: Sequence[Inventory]) -> dict[str, Slope]:
    """Return each program's slope over rounds, by batch means: values of neighbouring rounds go
    together, so a line is laid through the means of blocks of them, after the warm-up."""
    warm = rounds[int(_WARM_UP * len(rounds)) :]
    names = sorted({name for inventory in rounds for name in inventory.memory_mib})
    return {
        name: _slope(np.array([inventory.memory_mib.get(name, 0.0) for inventory in warm]))
        for name in names
    }


def _slope(memory_mib: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Slope:
    blocks = np.array_split(memory_mib, min(_BLOCKS, len(memory_mib)))
    means = np.array([block.mean() for block in blocks])
    starts = np.cumsum([0, *(len(block) for block in blocks[:-1])])
    middles = starts + np.array([(len(block) - 1) / 2 for block in blocks])
    if len(blocks) < 3:
        return Slope(float(means[0]), float(means[-1]), 0.0, float("-inf"), float("inf"))
    line = linregress(middles, means)
    half = float(t.ppf(0.975, len(blocks) - 2) * line.stderr)
    slope = float(line.slope)
    return Slope(
        round(float(means[0]), 1),
        round(float(means[-1]), 1),
        *(round(100 * value, 2) for value in (slope, slope - half, slope + half)),
    )


def _below(folder: Path) -> list[Path]:
    return list(folder.rglob("*")) if folder.is_dir() else []
