"""How far a job is, how fast it goes, and how long it will take. Pure: the caller has the clock."""

from dataclasses import dataclass

_LEAST_SHARE = 1e-9


@dataclass
class Pace:
    """What one run has done. Shares are of the whole input, by its bytes.

    ``began_at``: when the first worker could begin, s; ``earlier``: the share of earlier
    runs, ``share``: of this one.
    """

    began_at: float
    rows: int = 0
    failed: int = 0
    share: float = 0.0
    earlier: float = 0.0

    def keep(self, share: float) -> None:
        """Take note of a part that an earlier run has finished."""
        self.earlier += share

    def count(self, rows: int, failures: int, share: float) -> None:
        """Take note of a part that is finished now."""
        self.rows += rows
        self.failed += failures
        self.share += share

    def left_s(self, now: float) -> float | None:
        """Return how long the rest takes at the rate so far; None before anything is done."""
        if self.share <= _LEAST_SHARE:
            return None
        rest = max(1.0 - self.earlier - self.share, 0.0)
        return (now - self.began_at) * rest / self.share

    def line(self, now: float) -> str:
        """Return one line for people."""
        rate = self.rows / max(now - self.began_at, 1e-6)
        left_s = self.left_s(now)
        suffix = "" if left_s is None else f", {duration(left_s)} left"
        return f"{self.rows} rows, {self.failed} failed, {rate:.1f} rows/s{suffix}"


def duration(seconds: float) -> str:
    """Return a length of time as people say it: 8 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
