"""How often the holder of one named key may act: acts are written into the ledger, whose history
nobody shortens."""

import time
from collections import defaultdict, deque
from collections.abc import Callable

from vlserve.control.named_keys import OWNER, Holder
from vlserve.errors import TooManyActs

MOST_ACTS_A_MINUTE = 120
"""Of one named key; the owner may act as often as he likes."""
_MINUTE_S = 60.0


class ActLimit:
    """Of one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._acts: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=MOST_ACTS_A_MINUTE)
        )

    def count(self, holder: Holder) -> None:
        """Count one act. TooManyActs."""
        if holder == OWNER:
            return
        acts, now = self._acts[holder.name], self._clock()
        if len(acts) == MOST_ACTS_A_MINUTE and now - acts[0] < _MINUTE_S:
            raise TooManyActs(
                f"the key {holder.name} has acted {MOST_ACTS_A_MINUTE} times within a minute, and "
                f"may again in {_MINUTE_S - (now - acts[0]):.0f} s"
            )
        acts.append(now)
