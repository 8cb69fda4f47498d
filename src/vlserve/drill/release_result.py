"""The result of a checked release."""

from dataclasses import dataclass
from pathlib import Path

from vlserve.loadgen.release_checks import Check, StepSplit, VersionSummary


@dataclass(frozen=True)
class CheckedRelease:
    """What a checked release came to. result.json holds the same."""

    model: str
    candidate: int
    stable: int
    rate_per_s: float
    passed: bool
    verdict: str
    """One sentence; it names the broken checks."""
    checks: tuple[Check, ...]
    steps: tuple[StepSplit, ...]
    versions: tuple[VersionSummary, ...]
    rollback_ms: float | None
    """See `vlserve.loadgen.release_checks.rollback_ms`."""
    report: Path
    result: Path
