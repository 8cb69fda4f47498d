"""Runs of `vlserve stress` as the console compares them, from the result.json that each writes."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nlargest
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlserve.control.api.console.screens import Screen

MOST_RUNS = 50
"""The newest are shown."""
MOST_BYTES = 1024 * 1024
"""Of a result.json; a larger one is none of ours."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figures(_Told):
    """The judged requests."""

    requests: int
    error_rate: float
    rps: float
    p50_ms: float | None
    p99_ms: float | None
    versions: Mapping[int, int] = Field(default_factory=dict)


class StageTimes(_Told):
    """Mean milliseconds by stage."""

    stage_ms: Mapping[str, float]


class Stages(_Told):
    all: StageTimes


class Result(_Told):
    """What is read of result.json; vlserve.loadgen.stress_run.StressResult writes it."""

    model: str
    load: str
    duration_s: float
    figures: Figures
    passed: bool
    verdict: str
    stages: Stages | None = None


@dataclass(frozen=True)
class StagePart:
    """One stage of a bar. ``x``, ``width``: of 100."""

    name: str
    ms: float
    x: float
    width: float


@dataclass(frozen=True)
class LoadRun:
    """One run. ``folder``: below the folder of all runs. ``at``: UTC, ISO 8601."""

    folder: str
    at: str
    result: Result
    stages: tuple[StagePart, ...]


def newest_runs(folder: Path) -> list[LoadRun]:
    """Return the `MOST_RUNS` newest runs in ``folder``, those of a search for a limit too, the
    newest first."""
    files: list[tuple[float, Path]] = []
    for pattern in ("*/result.json", "*/*/result.json"):
        for file in folder.glob(pattern):
            with suppress(OSError):
                files.append((file.stat().st_mtime, file))
    newest = nlargest(MOST_RUNS, files)
    return [run for at, file in newest if (run := _read(folder, file, at)) is not None]


def load_tests_screen(runs: Sequence[LoadRun], model: str) -> Screen:
    """Show the runs of ``model``; empty: of all."""
    return {
        "chosen": model,
        "models": sorted({run.result.model for run in runs}),
        "runs": [run for run in runs if model in ("", run.result.model)],
    }


def _read(folder: Path, file: Path, at: float) -> LoadRun | None:
    """Return one run; None where the file is another one's, as of a gray release."""
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        result = Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    end = datetime.fromtimestamp(at, UTC).isoformat()
    return LoadRun(str(file.parent.relative_to(folder)), end, result, _parts(result))


def _parts(result: Result) -> tuple[StagePart, ...]:
    """Return the stages as parts of one bar."""
    stage_ms = result.stages.all.stage_ms if result.stages else {}
    total = sum(stage_ms.values()) or 1.0
    parts: list[StagePart] = []
    x = 0.0
    for name, ms in stage_ms.items():
        width = 100 * ms / total
        parts.append(StagePart(name, ms, round(x, 2), round(width, 2)))
        x += width
    return tuple(parts)
