"""Text files of users, which are read as UTF-8; for others, what their bytes look like."""

import codecs
from collections.abc import Mapping
from pathlib import Path

SAMPLE_BYTES = 64 * 1024
"""Of a file that are looked at."""
MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""With which files of these encodings begin; UTF-32's first, since UTF-16's begins alike."""
NAMES: Mapping[str, str] = {
    "gb18030": "GB18030",
    "big5": "BIG5",
    "shift_jis": "SHIFT-JIS",
    "euc_jp": "EUC-JP",
    "euc_kr": "EUC-KR",
    "cp1252": "WINDOWS-1252",
    "cp1251": "WINDOWS-1251",
}
"""Encodings that are told apart, by Python's name, as iconv calls them."""


class NotUtf8(ValueError):
    """Text that is not UTF-8; the message names what it looks like, and how to convert it."""


def read_utf8(path: Path) -> str:
    """Read a text file, without its byte order mark. Raises OSError, and NotUtf8."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"it is not UTF-8 at byte {error.start}{encoding_hint(path)}") from error


def encoding_of(raw: bytes) -> str | None:
    """Return the encoding that the bytes of a text look like; None for UTF-8, and where it cannot
    be told."""
    for mark, name in MARKS:
        if raw.startswith(mark):
            return name
    if b"\0" in raw:
        return _without_mark(raw)
    try:
        raw.decode("utf-8-sig")
        return None
    except UnicodeDecodeError as error:
        if error.start >= len(raw) - 3 and len(raw) >= SAMPLE_BYTES:
            return None  # a character that the end of the sample cuts
    from charset_normalizer import from_bytes  # here: it takes 30 ms, and few files need it

    guess = from_bytes(raw, cp_isolation=list(NAMES)).best()
    return None if guess is None else NAMES.get(guess.encoding)


def encoding_hint(path: Path) -> str:
    """Return what to add to a message about a file: what its bytes look like, and how to convert
    it; nothing where it is UTF-8, or cannot be told or read."""
    try:
        with path.open("rb") as file:
            name = encoding_of(file.read(SAMPLE_BYTES))
    except OSError:
        return ""
    if name is None:
        return ""
    return (
        f"; its bytes look like {name}: convert it, as with iconv -f {name} -t UTF-8 {path.name} "
        f"> utf8-{path.name}"
    )


def _without_mark(raw: bytes) -> str | None:
    """Guess an encoding. ASCII in UTF-16 has a zero in every other byte, in UTF-32 three of
    four."""
    zeros = raw.count(0) / len(raw)
    if zeros > 0.6:
        return "UTF-32LE" if raw[:1] != b"\0" else "UTF-32BE"
    if zeros > 0.2:
        return "UTF-16LE" if raw[1::2].count(0) > raw[::2].count(0) else "UTF-16BE"
    return None
