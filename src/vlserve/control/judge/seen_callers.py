"""The table of callers that were counted already; its size is fixed.

The gateway draws lots once per sticky key, so a caller's requests are one draw, not many, and what
they have in common (large images, a favourite tag) is not the version's doing. A caller is counted
once. And since a caller who drew the candidate keeps it as the weight rises, only the first request
of a caller is a fresh draw at the step's weight: callers are dealt out over the steps by a hash of
their key, and each step counts its own callers alone. So each step has callers that no step has
counted, and each draw is independent of all evidence before it.

The hash is keyed with the rollout's secret salt: who could compute it would know which keys count
in which step, and which hide others.

The table has a bit for each of SLOTS hash values. Two callers with one value count as one; which
those are depends on the hash alone, so the draws that are counted stay independent.
"""

from base64 import b64decode, b64encode
from hashlib import blake2b

SLOTS = 1 << 16


class SeenCallers:
    """The callers of one step. ``text`` is what the judge's state keeps."""

    def __init__(self, text: str = "", salt: str = "") -> None:
        """Raises ValueError if ``text`` is not what `text` returned. ``salt``: the rollout's."""
        self._key = salt.encode()
        self._bits = bytearray(b64decode(text, validate=True)) if text else bytearray(SLOTS // 8)
        if len(self._bits) != SLOTS // 8:
            raise ValueError(f"a table of {len(self._bits)} bytes, not {SLOTS // 8}")

    @property
    def text(self) -> str:
        return b64encode(self._bits).decode()

    def is_first_request(self, caller: str, turn: int, turns: int) -> bool:
        """Return whether to count this request of ``caller``: the first in step ``turn`` of
        ``turns``, if the caller is one of that step's."""
        value = int.from_bytes(
            blake2b(caller.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key).digest()
        )
        value, callers_turn = divmod(value, turns)
        if callers_turn != turn:
            return False
        byte, bit = divmod(value % SLOTS, 8)
        if self._bits[byte] >> bit & 1:
            return False
        self._bits[byte] |= 1 << bit
        return True
