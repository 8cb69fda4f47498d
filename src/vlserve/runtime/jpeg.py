"""A JPEG's layout, and whether its pixels are whole.

libjpeg fills what is missing with grey and goes on, and Pillow keeps libjpeg's warnings to itself.
So the layout is read here (ITU-T T.81, annex B), and libjpeg is fed so that it shows what it lacks:

- of a picture in one scan, the pixels without the end mark, then a few bits that no code begins
  with. It asks for more where pixels are missing, and is done early where bytes were replaced by
  fewer codes than there were;
- of a progressive one, whose end mark libjpeg waits for, twice with other bits behind the last
  scan: pixels that differ, of the size that the model sees, were made of them.

What editors and phones write beside the pixels (fill bytes, a video behind the end mark, odd
versions, one restart mark too many) is no damage.
"""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.image_bounds import MAX_EXIF_BYTES

MAX_SEGMENTS = 1000
"""Most segments beside the pixels: Pillow joins those of Exif, each time from the start. A profile
of 16 MB has 255."""
MAX_METADATA_BYTES = 8 * 2**20
"""Most bytes of segments and fill bytes in front of the pixels."""

LONGEST_ZEROS = 64
"""Most zero bytes in a row where no code of zeros stands for an even area."""
FILL_BYTES = 16
"""So many zeros or ones in front of the end mark are fill bytes, not pixels."""
NO_CODE = b"\xff\x00" * 8
"""Bits that no Huffman code begins with, more than libjpeg reads ahead."""
TWIN_BYTES = 1024
MAX_DOUBTFUL = 3
MAX_DOUBTFUL_PIXELS = 50_000_000
"""Most scans, and pixels times the passes over them for all of these, that are decoded four times
more: what has more passes unseen."""
READ_AHEAD = 16
"""Bytes, twice what libjpeg reads ahead."""

_EOI, _SOS, _DHT, _DRI, _APP1 = 0xD9, 0xDA, 0xC4, 0xDD, 0xE1
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_END = b"\xff\xd9"
_PROGRESSIVE = 0xC2
_FRAMES = frozenset({0xC0, 0xC1, _PROGRESSIVE})
"""Start of a frame of Huffman codes: sequential, the same with 12 bits, progressive."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class Scan:
    """One pass over the pixels: components by their number, coefficients ``first`` to ``last``,
    bits ``high`` to ``low``, first symbols of the tables, and the bytes ``start`` to ``end``."""

    components: tuple[int, ...]
    first: int
    last: int
    high: int
    low: int
    zeros: tuple[tuple[int | None, int | None], ...]
    """Of each component, what a code of zeros alone means: in the DC and in the AC table."""
    restart_interval: int
    start: int
    end: int


@dataclass
class Layout:
    """What stands where in a file, as far as it could be read."""

    frame: int | None = None
    width: int = 0
    height: int = 0
    factors: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Component -> its sampling factors, horizontal and vertical."""
    scans: list[Scan] = field(default_factory=list)
    closed: bool = False
    """Whether there is an end mark."""
    clean_head: bool = True
    """Whether nothing but segments stands in front of the pixels."""

    @property
    def in_one_scan(self) -> bool:
        """Whether libjpeg puts pixels out while it reads."""
        return self.frame in (0xC0, 0xC1) and len(self.scans[0].components) == len(self.factors)


def read_layout(data: bytes) -> Layout:
    """Read the segments of a file that begins as a JPEG does, to its end mark.

    Raises RequestError (IMAGE_TOO_COMPLEX) for more segments or metadata than a picture has.
    """
    reader = _Reader(data)
    reader.read()
    return reader.layout


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.layout = Layout()
        self._data = data
        self._zeros: dict[int, int | None] = {}
        self._interval = 0
        self._segments = self._metadata = self._exif = 0
        self._marks: NDArray[np.int64] | None = None

    def read(self) -> None:
        data, at = self._data, 2
        while (at := self._next_marker(at)) < len(data) - 1:
            self._count(1, 0)
            marker = data[at + 1]
            if marker == _EOI:
                self.layout.closed = True
                return
            if marker in _ALONE:
                at += 2
                continue
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            body = data[at + 4 : at + 2 + length]
            end = at + 2 + max(length, 2)
            if marker == _SOS:
                if not self._scan(body, end):
                    return
                end = self.layout.scans[-1].end
            else:
                self._segment(marker, body)
            at = end

    def _next_marker(self, at: int) -> int:
        """Where the next marker is, behind whatever is none; the file's end where none is."""
        match = _MARKER.search(self._data, at)
        place = match.start() if match else len(self._data)
        self._count(0, place - at)
        if place > at and not self.layout.scans:
            self.layout.clean_head = False
        return place

    def _count(self, segments: int, metadata: int, exif: int = 0) -> None:
        self._segments += segments
        self._metadata += metadata if not self.layout.scans else 0
        self._exif += exif
        for count, limit, what in (
            (self._segments, MAX_SEGMENTS, "segments"),
            (self._metadata, MAX_METADATA_BYTES, "bytes of metadata"),
            (self._exif, MAX_EXIF_BYTES, "bytes of Exif"),
        ):
            if count > limit:
                raise RequestError(
                    ErrorCode.IMAGE_TOO_COMPLEX, f"the JPEG has more than {limit} {what}"
                )

    def _segment(self, marker: int, body: bytes) -> None:
        is_exif = marker == _APP1 and body.startswith(b"Exif\0")
        self._count(0, len(body), len(body) if is_exif else 0)
        if marker in _FRAMES and self.layout.frame is None and len(body) >= 6:
            self.layout.frame = marker
            self.layout.height = int.from_bytes(body[1:3], "big")
            self.layout.width = int.from_bytes(body[3:5], "big")
            rest = body[6 : 6 + 3 * body[5]]
            self.layout.factors = {
                rest[at]: (rest[at + 1] >> 4, rest[at + 1] & 15)
                for at in range(0, len(rest) - 2, 3)
            }
        elif marker == _DRI and len(body) >= 2:
            self._interval = int.from_bytes(body[:2], "big")
        elif marker == _DHT:
            self._zeros |= dict(_codes_of_zeros(body))

    def _scan(self, body: bytes, start: int) -> bool:
        count = body[0] if body else 0
        if len(body) < 4 + 2 * count or not count:
            return False
        pairs = [(body[1 + 2 * at], body[2 + 2 * at]) for at in range(count)]
        tables = tuple(
            (self._zeros.get(table >> 4), self._zeros.get(16 + (table & 15))) for _, table in pairs
        )
        first, last, bits = body[1 + 2 * count : 4 + 2 * count]
        names = tuple(name for name, _ in pairs)
        end = self._end_of_pixels(start)
        self.layout.scans.append(
            Scan(names, first, last, bits >> 4, bits & 15, tables, self._interval, start, end)
        )
        return True

    def _end_of_pixels(self, start: int) -> int:
        if self._marks is None:
            octets = np.frombuffer(self._data, np.uint8)
            places = np.flatnonzero(octets[:-1] == 0xFF)
            behind = octets[places + 1]
            real = (behind != 0) & (behind != 0xFF) & ((behind < 0xD0) | (behind > 0xD7))
            self._marks = places[real]
        at = np.searchsorted(self._marks, start)
        end = int(self._marks[at]) if at < len(self._marks) else len(self._data)
        if at == len(self._marks) or self._data[end - 1] != 0xFF:
            return end
        return start + len(self._data[start:end].rstrip(b"\xff"))  # fill bytes: a code's has 00


def _codes_of_zeros(tables: bytes) -> Iterator[tuple[int, int | None]]:
    """Table (AC: 16 more) -> the symbol of its first code, which is of zeros alone."""
    at = 0
    while at + 17 <= len(tables):
        number, count = tables[at], sum(tables[at + 1 : at + 17])
        symbols = tables[at + 17 : at + 18] if count else b""
        yield (number & 15) + (16 if number >> 4 else 0), symbols[0] if symbols else None
        at += 17 + count


class PixelFeed(io.BytesIO):
    """A picture in one scan as libjpeg is fed with it, without its end mark."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        super().__init__(data[:end] + NO_CODE)
        self._tail = max(start, end - READ_AHEAD)
        self.used_up = False
        """Whether the last bytes were asked for."""

    def read(self, size: int | None = -1) -> bytes:
        """Read, but not over the place where the last bytes begin."""
        rest = self._tail - self.tell()
        if rest > 0 and size is not None and size > rest:
            return super().read(rest)
        self.used_up = self.used_up or rest <= 0
        return super().read(size)


def feeds(data: bytes, layout: Layout) -> list[io.BytesIO]:
    """Return the files that a JPEG is to be decoded from: the next one where one is cut short."""
    if not (layout.scans and layout.closed and layout.in_one_scan):
        return [io.BytesIO(data)]
    scan = layout.scans[-1]
    end = _end_of_codes(data, scan)
    files: list[io.BytesIO] = [PixelFeed(data, scan.start, end)]
    if end < scan.end and _zeros_are_even(scan, layout.frame):
        files.append(io.BytesIO(data))  # what looked like fill bytes is an even area
    return files


Twins = tuple[io.BytesIO, io.BytesIO]
"""A picture of several scans twice, with other bits behind the pixels of one scan, its last."""


def twins(data: bytes, layout: Layout) -> Twins:
    """Return the twins of the last scan: they look the same where all its pixels are there."""
    return _twins(data, layout.scans[-1].end)


def doubtful(data: bytes, layout: Layout) -> Iterator[tuple[Twins, Twins]]:
    """Yield two twins of each scan whose many zeros may be pixels or may not: they are where the
    first two look the same, and the others, which lack their last bytes, do not."""
    budget = MAX_DOUBTFUL_PIXELS
    for passes, scan in enumerate(layout.scans, start=1):
        end = _end_of_codes(data, scan)
        if data.find(bytes(LONGEST_ZEROS), scan.start, end) < 0:
            continue
        budget -= max(passes * layout.width * layout.height, MAX_DOUBTFUL_PIXELS // MAX_DOUBTFUL)
        if budget >= 0:
            yield _twins(data, scan.end), _twins(data, end - READ_AHEAD)


def _twins(data: bytes, end: int) -> Twins:
    zeros, pattern = bytes(TWIN_BYTES), b"\x5a\xa3" * (TWIN_BYTES // 2)
    return io.BytesIO(data[:end] + zeros + _END), io.BytesIO(data[:end] + pattern + _END)


def damage(data: bytes, layout: Layout) -> str | None:
    """Return what the layout alone shows to be broken inside; None where it shows nothing."""
    for scan in layout.scans:
        end = _end_of_codes(data, scan)
        if data.find(bytes(LONGEST_ZEROS), scan.start, end) >= 0 and not _zeros_are_even(
            scan, layout.frame
        ):
            return "a part of its pixels is zeros"
        if scan.restart_interval and _restarts_missing(data[scan.start : end], scan, layout):
            return "restart marks are missing between its pixels"
    if layout.frame == _PROGRESSIVE and layout.closed and not _all_bits_came(layout):
        return "its last passes are missing"
    return None


def _end_of_codes(data: bytes, scan: Scan) -> int:
    """Where the codes of a scan end: in front of fill bytes, where there are many."""
    last = data[max(scan.start, scan.end - FILL_BYTES) : scan.end]
    if last.strip(b"\x00\xff"):
        return scan.end  # as nearly always: nothing is copied
    codes = data[scan.start : scan.end].rstrip(b"\x00\xff")
    fill = scan.end - scan.start - len(codes)
    return scan.end if fill < FILL_BYTES else scan.start + len(codes) + FILL_BYTES // 2


def _zeros_are_even(scan: Scan, frame: int | None) -> bool:
    """Whether many bits of zero may stand for an even area, by what a code of zeros means."""
    dc = all(first in (0, None) for first, _ in scan.zeros)
    if frame != _PROGRESSIVE:
        return dc and all(symbol in (0, None) for _, symbol in scan.zeros)
    if scan.high:  # bits of coefficients follow without a code
        return True
    if scan.first == 0:
        return dc
    return all(symbol is None or symbol % 16 == 0 for _, symbol in scan.zeros)


def _restarts_missing(codes: bytes, scan: Scan, layout: Layout) -> bool:
    most = [max(factor) for factor in zip(*layout.factors.values(), strict=True)]
    if not layout.height or not layout.width or 0 in most:
        return False
    if len(scan.components) > 1:
        blocks = [8 * most[0], 8 * most[1]]
    else:
        factors = layout.factors.get(scan.components[0], (1, 1))
        blocks = [8 * top / own if own else 8 for top, own in zip(most, factors, strict=True)]
    units = math.ceil(layout.width / blocks[0]) * math.ceil(layout.height / blocks[1])
    marks = sum(codes.count(bytes([0xFF, mark])) for mark in range(0xD0, 0xD8))
    expected: int = math.ceil(units / scan.restart_interval) - 1
    return marks < expected


def _all_bits_came(layout: Layout) -> bool:
    missing_bits = {(name, place) for name in layout.factors for place in range(64)}
    for scan in layout.scans:
        if scan.low == 0:
            missing_bits -= {
                (name, place)
                for name in scan.components
                for place in range(scan.first, scan.last + 1)
            }
    return not missing_bits
