"""Protobuf's wire format, as far as V2's messages need it: read within limits, and written.

Google's own package is not used: an archive's worker need not have it, and where TorchServe brings
one, its version is TorchServe's. https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlserve_worker.bodies import TOO_COMPLEX
from vlserve_worker.v2.messages import refused

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types; groups, which have two more, are long out of use."""

MAX_FIELDS = 100_000
"""Of one request with all messages inside of it: each is an object while it is read."""

MAX_NUMBERS = 1_000_000
"""Most numbers of a tensor that are not sent as raw bytes."""

_MAX_VARINT_BYTES = 10
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Field:
    """``value``: a number without its sign for a varint, else the bytes."""

    number: int
    wire_type: int
    value: int | memoryview

    def integer(self) -> int:
        """Return a varint. Raises BodyRefused: it is none."""
        if not isinstance(self.value, int):
            raise self._wrong()
        return self.value

    def octets(self, wire_type: int = LENGTH_DELIMITED) -> memoryview:
        """Return the bytes of a value. Raises BodyRefused: it is of another wire type."""
        if self.wire_type != wire_type or isinstance(self.value, int):
            raise self._wrong()
        return self.value

    def text(self) -> str:
        """Return a string. Raises BodyRefused: it is none, or not UTF-8."""
        try:
            return str(self.octets(), "utf-8")
        except UnicodeDecodeError as error:
            raise refused(f"field {self.number} of a message is no UTF-8") from error

    def _wrong(self) -> Exception:
        return refused(f"field {self.number} of a message has another type than V2 gives it")


class WireReader:
    """Reads the messages of one request. It counts their fields."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Yield a message's fields in their order.

        Raises:
            BodyRefused: it is no message, or has too many fields.
        """
        at = 0
        while at < len(message):
            self._left -= 1
            if self._left < 0:
                raise refused(f"the message has more than {MAX_FIELDS} fields", TOO_COMPLEX)
            tag, at = _varint(message, at)
            number, wire_type = tag >> 3, tag & 7
            if not number:
                raise refused("the body is no protobuf message")
            if wire_type == VARINT:
                value, at = _varint(message, at)
                yield Field(number, wire_type, value)
                continue
            if wire_type == LENGTH_DELIMITED:
                size, at = _varint(message, at)
            elif wire_type in _FIXED_BYTES:
                size = _FIXED_BYTES[wire_type]
            else:
                raise refused("the body is no protobuf message")
            if size > len(message) - at:
                raise refused("the protobuf message is cut short")
            yield Field(number, wire_type, message[at : at + size])
            at += size


def signed(value: int) -> int:
    """Return what a varint means as an int64 or int32."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def packed_varints(data: memoryview) -> NDArray[np.uint64]:
    """Return the varints that stand one after the other, without their signs.

    Raises:
        BodyRefused: they are none, or more than MAX_NUMBERS.
    """
    octets = np.frombuffer(data, dtype=np.uint8)
    are_ends = octets < 0x80
    if np.count_nonzero(are_ends) > MAX_NUMBERS:
        raise refused(
            f"a tensor has more than {MAX_NUMBERS} numbers in its contents: send them as "
            "raw_input_contents",
            TOO_COMPLEX,
        )
    ends = np.flatnonzero(are_ends)
    if octets.size and (not ends.size or ends[-1] != octets.size - 1):
        raise refused("the protobuf message is cut short")
    starts = np.concatenate(([0], ends + 1))[:-1]
    lengths = ends - starts + 1
    longest = int(lengths.max(initial=0))
    if longest > _MAX_VARINT_BYTES:
        raise refused("the protobuf message has a number of more than ten bytes")
    values = np.zeros(ends.size, dtype=np.uint64)
    for place in range(longest):
        here = lengths > place
        bits = octets[starts[here] + place].astype(np.uint64) & np.uint64(0x7F)
        values[here] |= bits << np.uint64(7 * place)
    return values


def write_varint(value: int) -> bytes:
    """Write a number; of a negative one its 64 bits."""
    value &= 2**64 - 1
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def write_integer(number: int, value: int) -> bytes:
    """Write a field with a number or a switch; nothing for 0, which is what a missing one means."""
    return write_varint(number << 3 | VARINT) + write_varint(value) if value else b""


def write_octets(number: int, value: bytes) -> bytes:
    """Write a field with bytes or a message."""
    return b"".join((write_varint(number << 3 | LENGTH_DELIMITED), write_varint(len(value)), value))


def write_text(number: int, value: str) -> bytes:
    """Write a field with a string; nothing for an empty one."""
    return write_octets(number, value.encode("utf-8", "backslashreplace")) if value else b""


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for place, octet in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (octet & 0x7F) << 7 * place
        if octet < 0x80:
            return value & 2**64 - 1, at + place + 1
    raise refused("the protobuf message is cut short, or has a number of more than ten bytes")
