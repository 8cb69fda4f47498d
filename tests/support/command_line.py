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


Run = Callable[..., Ended]
"""Words of a command line -> how it ended."""
