"""What an ONNX file says of its inputs, outputs and weights, without the weights themselves.

An ONNX file is a protobuf message of up to 2 GiB, nearly all of it weights. To parse it whole takes
several times that in memory; this reads it as a stream and keeps what `check_onnx` asks for.
Field numbers are those of onnx.proto; the wire format is that of
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlserve.runtime.errors import ArchiveTooLarge, ArchiveUnreadable

MAX_OUTLINE_BYTES = 64 * 1024**2
MAX_OUTLINE_FIELDS = 1_000_000

_WHOLE: Mapping[int, Any] = {}
_TENSOR = {8: _WHOLE, 13: _WHOLE, 14: _WHOLE}  # name, external_data, data_location
_GRAPH = {5: _TENSOR, 11: _WHOLE, 12: _WHOLE}  # initializer, input, output
_MODEL = {7: _GRAPH}
_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_LONGEST_VARINT = 10


def read_outline(chunks: Iterable[bytes], name: str) -> bytes:
    """Return the ONNX file in ``chunks`` as a small one: its graph's inputs and outputs, and the
    names and places of its weights. ``name`` is what errors call it.

    ArchiveUnreadable: no protobuf message; ArchiveTooLarge: a limit of this module.
    """
    return _outline(_Reader(iter(chunks), name), None, _MODEL)


def _outline(reader: "_Reader", end: int | None, fields: Mapping[int, Any]) -> bytes:
    """Return the ``fields`` of the message that ends at byte ``end``; None: at the file's
    end."""
    outline = bytearray()
    while not reader.is_at(end):
        reader.count_field()
        key = reader.varint()
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value = reader.varint()
            if field in fields:
                outline += _varint(key) + _varint(value)
        elif kind in _FIXED_BYTES:
            reader.skip(_FIXED_BYTES[kind])
        elif kind == _LENGTH and field > 0:
            length = reader.varint()
            if end is not None and reader.position + length > end:
                raise reader.unreadable("a field is longer than the message that holds it")
            if field not in fields:
                reader.skip(length)
                continue
            deeper = fields[field]
            if deeper:
                content = _outline(reader, reader.position + length, deeper)
            else:
                content = reader.keep(length)
            outline += _varint(key) + _varint(len(content)) + content
        else:
            raise reader.unreadable(f"no field begins with {key:#x}")
    return bytes(outline)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


class _Reader:
    """Reads a stream of chunks forwards, holding one of them."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._chunk = b""
        self._next = 0
        self._fields = self._kept_bytes = 0
        self.position = 0
        """Bytes read so far."""

    def is_at(self, end: int | None) -> bool:
        """Tell whether byte ``end`` is next; None: whether nothing is left."""
        return not self._fill() if end is None else self.position >= end

    def varint(self) -> int:
        value = 0
        for index in range(_LONGEST_VARINT):
            (byte,) = self._read(1)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value
        raise self.unreadable("a number has no end")

    def skip(self, length: int) -> None:
        for _ in self._pieces(length):
            pass

    def keep(self, length: int) -> bytes:
        self._kept_bytes += length
        if self._kept_bytes > MAX_OUTLINE_BYTES:
            raise ArchiveTooLarge(
                f"{self._name}: its inputs, outputs and names have more than "
                f"{MAX_OUTLINE_BYTES} bytes"
            )
        return self._read(length)

    def count_field(self) -> None:
        self._fields += 1
        if self._fields > MAX_OUTLINE_FIELDS:
            raise ArchiveTooLarge(f"{self._name} has more than {MAX_OUTLINE_FIELDS} fields")

    def unreadable(self, why: str) -> ArchiveUnreadable:
        return ArchiveUnreadable(
            f"{self._name} is not an ONNX graph: {why}, before byte {self.position}"
        )

    def _read(self, length: int) -> bytes:
        return b"".join(self._pieces(length))

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length:
            if not self._fill():
                raise self.unreadable("it is cut short")
            piece = self._chunk[self._next : self._next + length]
            self._next += len(piece)
            self.position += len(piece)
            length -= len(piece)
            yield piece

    def _fill(self) -> bool:
        """Return whether there is a byte to read."""
        while self._next == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._chunk, self._next = chunk, 0
        return True
