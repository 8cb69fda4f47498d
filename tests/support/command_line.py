"""The script `vlserve` itself, run in this process."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended: 0 done, 1 refused in one line, 2 wrong usage."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Its one line of refusal."""
        assert self.code == 1, self
        *progress, last = self.err.splitlines()
        assert last.startswith("vlserve: "), self.err
        assert not [line for line in progress if line.startswith(("vlserve: ", "Traceback"))]
        return last

    @property
    def refusal(self) -> str:
        """What was refused and why: its one line, or what a wrong usage ends with."""
        if self.code == 1:
            return self.line
        assert self.code == 2, self
        assert "Traceback" not in self.err, self.err
        usage, *rest = self.err.splitlines()
        assert usage.startswith("Usage: vlserve"), self.err
        return " ".join(line.strip("│ ") for line in rest if line.startswith("│"))


Run = Callable[..., Ended]
"""Words of a command line -> how it ended."""
