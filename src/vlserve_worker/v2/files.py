"""Files in base64, as JSON carries them -> their bytes, which archives of every age read."""

import binascii
import re
from contextlib import suppress

FILES = frozenset({"image", "image2", "video", "features", "features2", "boxes", "boxes2"})
"""Fields of requests that hold a file."""

_IS_BASE64 = re.compile(rb"\s*(data:|[A-Za-z0-9+/_-]{16,64}(?:[A-Za-z0-9+/_=\r\n-]|$))")
"""How base64 begins, and no such file: those have bytes beyond ASCII, or a blank, in their first
sixteen."""
_TO_PLAIN = bytes.maketrans(b"-_", b"+/")
_BREAKS = b"\r\n\t"


def file_bytes(value: bytes) -> bytes:
    """Return a file's bytes; what is no base64 stays, for the archive to refuse it."""
    if not _IS_BASE64.match(value):
        return value
    with suppress(binascii.Error):  # the rare forms are looked for only where the usual one fails
        return binascii.a2b_base64(value, strict_mode=True)
    head, comma, _ = value[:200].partition(b",")
    payload = value[len(head) + 1 :] if comma and head.lstrip().startswith(b"data:") else value
    try:
        return binascii.a2b_base64(payload.strip().translate(_TO_PLAIN, _BREAKS), strict_mode=True)
    except binascii.Error:
        return value
