"""The bytes of an archive's zip, held against its directory, and its members read from them.

TorchServe unpacks a zip from its front, header by header; Python reads the directory at its end.
Where the two differ, what was checked is not what runs. So every byte in front of the directory
must belong to a member that the directory lists, and each header must say what its entry says.
Whatever a size could cost is bounded before it is paid.
"""

import itertools
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from vlserve.runtime.errors import ArchiveTampered, ArchiveTooLarge, ArchiveUnreadable

CHUNK_BYTES = 1024**2
MAX_MEMBERS = 10_000
MAX_NAME_BYTES = 255
MAX_DIRECTORY_BYTES = 8 * 1024**2
MAX_UNPACKED_BYTES = 16 * 1024**3
MAX_UNPACKED_RATIO = 20
"""Bytes that an archive may unpack to for each of its own, beyond FREE_UNPACKED_BYTES."""
FREE_UNPACKED_BYTES = 64 * 1024**2

_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_HEADER = struct.Struct("<4s5H3L2H")
_HEADER_MARK = b"PK\x03\x04"
_END_MARK = b"PK\x05\x06"
_ENCRYPTED, _DEFLATE_LEVEL, _DESCRIPTOR, _UTF8 = 0x1, 0x6, 0x8, 0x800
_ZIP64_EXTRA = 0x0001
_ADMITTED_EXTRAS = frozenset({_ZIP64_EXTRA, 0x5455, 0x5855, 0x7875, 0x000A})
"""Large sizes, times and owners: the other extra fields can rename a member, or encrypt it."""
_ANEW = "pack it anew with `vlserve export`"


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie, and what they must be."""

    name: str
    start: int
    packed_bytes: int
    size_bytes: int
    crc: int
    deflated: bool


def read_layout(file: IO[bytes], where: str) -> dict[str, Member]:
    """Return the members by name, in the order in which they lie in the file.

    ``where`` names the archive in errors. ArchiveUnreadable: no zip, cut short, or packed in a way
    that is not read. ArchiveTooLarge: a limit of this module. ArchiveTampered: two programs could
    read it differently, or unpack it to somewhere else.
    """
    entries = _read_directory(file, where)
    names = [entry.filename for entry in entries]
    _check_names(names, where)
    check_unpacked_size(sum(entry.file_size for entry in entries), _length(file), where)
    for entry in entries:
        _check_entry(entry, where)
    return {member.name: member for member in _placed(file, entries, where)}


def read_chunks(file: IO[bytes], member: Member, where: str) -> Iterator[bytes]:
    """Yield a member's bytes in chunks of at most CHUNK_BYTES. ArchiveUnreadable where they are
    damaged, ArchiveTampered where they are not exactly the bytes that the directory tells of."""
    raw_chunks = _packed(file, member)
    crc = size = 0
    try:
        for chunk in _inflate(raw_chunks, member.name, where) if member.deflated else raw_chunks:
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            if size > member.size_bytes:
                break
            yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ArchiveUnreadable(f"{where}: member {member.name} cannot be read: {error}") from error
    if size != member.size_bytes:
        raise _differs(where, member.name, f"is not the {member.size_bytes} bytes that it says")
    if crc != member.crc:
        raise ArchiveUnreadable(f"{where}: member {member.name} cannot be read: wrong checksum")


def _packed(file: IO[bytes], member: Member) -> Iterator[bytes]:
    for offset in range(0, member.packed_bytes, CHUNK_BYTES):
        file.seek(member.start + offset)  # the file may have been read elsewhere in between
        chunk = file.read(min(CHUNK_BYTES, member.packed_bytes - offset))
        if not chunk:
            raise EOFError("the file ends within it")
        yield chunk


def _inflate(chunks: Iterator[bytes], name: str, where: str) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for chunk_in in chunks:
        rest = chunk_in
        while rest and not inflater.eof:
            if chunk := inflater.decompress(rest, CHUNK_BYTES):
                yield chunk
            rest = inflater.unconsumed_tail
        if rest or inflater.unused_data:
            raise _differs(where, name, "ends before its packed size")
    while not inflater.eof:
        chunk = inflater.decompress(b"", CHUNK_BYTES)
        if chunk:
            yield chunk
        elif not inflater.eof:
            raise EOFError("its compressed bytes are cut short")


def _length(file: IO[bytes]) -> int:
    return file.seek(0, 2)


def _read_directory(file: IO[bytes], where: str) -> Sequence[zipfile.ZipInfo]:
    """Return the entries of the directory, which ends the file and begins where the end record
    says."""
    count, size_bytes, start = _read_end(file, where)
    if count > MAX_MEMBERS:
        raise ArchiveTooLarge(f"{where} has {count} members, more than {MAX_MEMBERS}")
    if size_bytes > MAX_DIRECTORY_BYTES:
        raise ArchiveTooLarge(
            f"{where} has a directory of {size_bytes} bytes, more than {MAX_DIRECTORY_BYTES}"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries, begins = archive.infolist(), archive.start_dir
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise ArchiveUnreadable(f"{where} is not a readable archive: {error}") from error
    if (len(entries), begins) != (count, start):
        raise ArchiveTampered(
            f"{where}: its end tells of {count} members and a directory at byte {start}, "
            f"and there are {len(entries)} and one at {begins}: {_ANEW}"
        )
    return sorted(entries, key=lambda entry: entry.header_offset)


def _read_end(file: IO[bytes], where: str) -> tuple[int, int, int]:
    """Return how many entries the directory has, its bytes, and where it begins."""
    length = _length(file)
    tail = _read_at(file, max(0, length - 2**16 - _END.size), length)
    end = tail[-_END.size :]
    if len(end) < _END.size or not (end.startswith(_END_MARK) and end.endswith(b"\0\0")):
        if _END_MARK in tail:
            raise ArchiveTampered(f"{where}: bytes follow the end of its directory: {_ANEW}")
        raise ArchiveUnreadable(f"{where} is not a readable archive: it has no end of a zip")
    _, *disks, count, size_bytes, start, _ = _END.unpack(end)
    zip64_end = length - _END.size - _ZIP64_LOCATOR.size - _ZIP64_END.size
    raw = _read_at(file, max(0, zip64_end), length - _END.size)
    if raw[_ZIP64_END.size :].startswith(b"PK\x06\x07"):
        sign, *_, count, size_bytes, start = _ZIP64_END.unpack(raw[: _ZIP64_END.size])
        if sign != b"PK\x06\x06":
            raise ArchiveUnreadable(f"{where} is not a readable archive: its zip64 end is damaged")
    elif disks[:2] != [0, 0]:
        raise ArchiveUnreadable(f"{where} is not a readable archive: it is one of several parts")
    return count, size_bytes, start


def _read_at(file: IO[bytes], start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def check_unpacked_size(size_bytes: int, length: int, where: str) -> None:
    """Hold the bytes that an archive of ``length`` bytes unpacks to against the limits.
    ArchiveTooLarge."""
    if size_bytes > MAX_UNPACKED_BYTES:
        raise ArchiveTooLarge(
            f"{where} unpacks to {size_bytes} bytes, more than {MAX_UNPACKED_BYTES}"
        )
    if size_bytes > max(FREE_UNPACKED_BYTES, length * MAX_UNPACKED_RATIO):
        raise ArchiveTooLarge(
            f"{where} has {length} bytes and unpacks to {size_bytes}, "
            f"more than {MAX_UNPACKED_RATIO} times as many"
        )


def _check_names(names: Sequence[str], where: str) -> None:
    """Check that each name is one file of its own within the folder, on every system."""
    files: dict[str, str] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise ArchiveTampered(f"{where}: member name {name!r} could leave its folder")
        if not name.isprintable():
            raise ArchiveTampered(f"{where}: member name {name!r} cannot be printed")
        if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise ArchiveTooLarge(
                f"{where}: member name {name[:50]!r}… is longer than {MAX_NAME_BYTES} bytes"
            )
        if name.endswith("/"):
            raise ArchiveTampered(f"{where}: {name} is a folder, not in the manifest: leave it out")
        if name != "/".join(parts):
            raise ArchiveTampered(f"{where}: member name {name!r} is not written as a plain path")
        key = _folded(name)
        if key in files:
            other = files[key]
            problem = (
                "is there twice" if other == name else f"and {other} are one file on some systems"
            )
            raise ArchiveTampered(f"{where}: member {name} {problem}")
        files[key] = name
    # what lies in a folder comes right behind a file of the folder's name, where "/" comes first
    entries = sorted((key.replace("/", "\0"), name) for key, name in files.items())
    for (file, folder), (inside, name) in itertools.pairwise(entries):
        if inside.startswith(f"{file}\0"):
            raise ArchiveTampered(f"{where}: {folder} is a file and the folder of {name}")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_entry(entry: zipfile.ZipInfo, where: str) -> None:
    """Check what the directory says of one member, by itself."""
    name, flags = entry.filename, entry.flag_bits
    if entry.orig_filename != name or not (name.isascii() or flags & _UTF8):
        raise ArchiveTampered(f"{where}: member {name} has two names: {_ANEW}")
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise ArchiveTampered(f"{where}: member {name} is a symbolic link")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):  # 0: of a system without these
        raise ArchiveTampered(f"{where}: member {name} is no regular file")
    if flags & _ENCRYPTED:
        raise ArchiveUnreadable(f"{where}: member {name} cannot be read: it is encrypted")
    if flags & _DESCRIPTOR:
        raise ArchiveTampered(
            f"{where}: member {name} has its size behind its bytes, where programs look for it "
            f"differently: {_ANEW}"
        )
    if flags & ~(_DEFLATE_LEVEL | _UTF8):
        raise ArchiveUnreadable(f"{where}: member {name} cannot be read: its flags are {flags:#x}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveUnreadable(
            f"{where}: member {name} cannot be read: its compression {entry.compress_type} is "
            "neither none nor deflate"
        )
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise _differs(where, name, "is stored as it is and has two sizes")


def _placed(file: IO[bytes], entries: Sequence[zipfile.ZipInfo], where: str) -> Iterator[Member]:
    """Yield each member where its header is, once the members fill the file up to the directory."""
    cursor = 0
    for entry in entries:
        _check_gap(file, cursor, entry.header_offset, where)
        member = _read_member(file, entry, where)
        cursor = member.start + member.packed_bytes
        yield member
    _, _, directory = _read_end(file, where)
    _check_gap(file, cursor, directory, where)


def _check_gap(file: IO[bytes], cursor: int, begins: int, where: str) -> None:
    if begins < cursor:
        raise ArchiveTampered(f"{where}: members overlap at byte {begins}: {_ANEW}")
    if begins > cursor:
        header = _read_at(file, cursor, cursor + _HEADER.size + MAX_NAME_BYTES)
        what = f"{begins - cursor} bytes at byte {cursor}"
        if len(header) > _HEADER.size and header.startswith(_HEADER_MARK):
            name = header[_HEADER.size :][: _HEADER.unpack_from(header)[-2]]
            what = f"a member {name.decode(errors='replace')!r}"
        raise ArchiveTampered(f"{where} has {what} that its directory does not list: {_ANEW}")


def _read_member(file: IO[bytes], entry: zipfile.ZipInfo, where: str) -> Member:
    """Hold a member's header against its entry in the directory."""
    name, start = entry.filename, entry.header_offset
    raw = _read_at(file, start, start + _HEADER.size)
    if len(raw) < _HEADER.size or not raw.startswith(_HEADER_MARK):
        raise ArchiveTampered(f"{where}: member {name} has no header in front of it: {_ANEW}")
    _, _, flags, method, _, _, crc, packed_size, size, name_bytes, extra_bytes = _HEADER.unpack(raw)
    start += _HEADER.size
    own_name = _read_at(file, start, start + name_bytes)
    start += name_bytes
    large = _large_sizes(_read_at(file, start, start + extra_bytes), name, where)
    _large_sizes(entry.extra, name, where)
    if large is not None:
        if (size, packed_size) not in (large, (2**32 - 1, 2**32 - 1)):
            raise _differs(where, name, "has two sizes in its header")
        size, packed_size = large
    pairs = {
        "name": (own_name.decode(errors="replace"), name),
        "flags": (flags, entry.flag_bits),
        "compression": (method, entry.compress_type),
        "checksum": (crc, entry.CRC),
        "packed size": (packed_size, entry.compress_size),
        "size": (size, entry.file_size),
    }
    for what, (header, directory) in pairs.items():
        if header != directory:
            raise _differs(
                where,
                name,
                f"has the {what} {header!r} in its header, {directory!r} in the directory",
            )
    deflated = method == zipfile.ZIP_DEFLATED
    return Member(name, start + extra_bytes, packed_size, size, crc, deflated)


def _large_sizes(extra: bytes, name: str, where: str) -> tuple[int, int] | None:
    """Return a zip64 extra field's size and packed size, where both are there. Some programs take
    them whatever the header itself says."""
    large = None
    while extra:
        kind, length = struct.unpack_from("<2H", extra) if len(extra) >= 4 else (0, len(extra))
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind not in _ADMITTED_EXTRAS or len(content) != length:
            raise _differs(where, name, f"has an extra field {kind:#06x}, which is not read")
        if kind == _ZIP64_EXTRA and large is not None:
            raise _differs(where, name, "has two zip64 fields")
        if kind == _ZIP64_EXTRA and length >= 16:
            size, packed_size = struct.unpack_from("<2Q", content)
            large = (size, packed_size)
    return large


def _differs(where: str, name: str, what: str) -> ArchiveTampered:
    return ArchiveTampered(
        f"{where}: member {name} {what}, so that programs read it differently: {_ANEW}"
    )
