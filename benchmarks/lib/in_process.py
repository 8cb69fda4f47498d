"""The limit: the archive's own code in as many processes as cores, one thread each, no server.

Everything that a server does for its clients, from an image's bytes to an answer's JSON, and
nothing else: requests and answers stay in memory.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import CHECKOUT
from benchmarks.lib.sides import TUNED, plain_environment


@dataclass(frozen=True)
class WorkDone:
    """What one process did."""

    items: int
    seconds: float
    batch_p50_ms: float


class InProcess:
    """Processes that are up, warm and idle until they are asked."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"]) -> None:
        self.processes = processes

    def items_per_s(self, batch_size: int, seconds: float) -> float:
        """All processes together."""
        return sum(work.items / work.seconds for work in self._work(batch_size, seconds))

    def alone_p50_ms(self, seconds: float) -> float:
        """What one item takes in one process, while the others rest."""
        return self._work(1, seconds, self.processes[:1])[0].batch_p50_ms

    def _work(
        self,
        batch_size: int,
        seconds: float,
        processes: Sequence["subprocess.Popen[str]"] | None = None,
    ) -> list[WorkDone]:
        workers = processes or self.processes
        for process in workers:
            assert process.stdin
            process.stdin.write(f"{batch_size} {seconds}\n")
            process.stdin.flush()
        return [WorkDone(**json.loads(_line(process))) for process in workers]


@contextmanager
def in_process(folder: Path, count: int) -> Iterator[InProcess]:
    """``folder``: an unpacked archive."""
    command = [sys.executable, "-m", "benchmarks.lib.in_process_worker", str(folder.resolve())]
    with ExitStack() as resources:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=CHECKOUT,
                env=plain_environment(**TUNED),
                encoding="utf-8",
            )
            resources.enter_context(process)
            resources.callback(process.kill)
            processes.append(process)
        for process in processes:
            _line(process)
        yield InProcess(processes)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the in-process limit's process ended: {process.wait()}")
    return line
