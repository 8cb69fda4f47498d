"""Errors that an archive's own code raises.

VlserveError
├── ArchiveError            the archive cannot be used
│   ├── ArchiveUnreadable   not a zip, truncated, or a member that cannot be read
│   ├── ArchiveTooLarge     it, or something in it, is over a limit
│   ├── ManifestInvalid     the manifest says something impossible or contradicts itself
│   └── ArchiveTampered     a member is missing, extra, or not the bytes that the manifest lists
└── RequestError            one request cannot be answered; its neighbours can

vlserve.errors draws the rest of the tree.
"""

from enum import StrEnum
from typing import Any

from pydantic import ValidationError


class VlserveError(Exception):
    """Root of every error that vlserve raises on purpose.

    ``code``: what the HTTP API calls the error. Each class has its own, and it never changes:
    clients compare it.
    """

    code: str = "vlserve_error"


class ArchiveError(VlserveError):
    """The archive cannot be used."""

    code = "archive_error"


class ArchiveUnreadable(ArchiveError):
    """Not a zip, truncated, or a member that cannot be read."""

    code = "archive_unreadable"


class ArchiveTooLarge(ArchiveError):
    """The archive, or something that it says or unpacks to, is over a limit."""

    code = "archive_too_large"


class ManifestInvalid(ArchiveError):
    """The manifest says something impossible or contradicts itself."""

    code = "manifest_invalid"


class ArchiveTampered(ArchiveError):
    """A member is missing, extra, or not the bytes that the manifest lists."""

    code = "archive_tampered"


class ErrorCode(StrEnum):
    """Why one request was not answered. The edge (engine entry points, gateway) maps it to HTTP."""

    BODY_UNREADABLE = "body_unreadable"  # no form, JSON object or image; the message says why
    BODY_TOO_LARGE = "body_too_large"  # over the byte limit once it is unpacked
    BODY_TOO_COMPLEX = "body_too_complex"  # too many fields, values, levels or escapes
    TOO_MANY_ITEMS = "too_many_items"  # of one request of V2
    ITEMS_TOO_LATE = "items_too_late"  # items of a V2 request whose neighbours took too long
    FIELD_INVALID = "field_invalid"  # a field missing, unknown, or of the wrong type or range
    IMAGE_UNREADABLE = "image_unreadable"  # not an image, truncated, or base64 that is not
    IMAGE_TOO_LARGE = "image_too_large"  # over the limit of bytes, pixels or scans
    IMAGE_TOO_COMPLEX = "image_too_complex"  # too many segments, or bytes beside the pixels
    IMAGE_DAMAGED = "image_damaged"  # a whole file by its ends, whose pixels are broken inside
    VIDEO_UNREADABLE = "video_unreadable"  # not a video, or none of its frames can be decoded
    VIDEO_TOO_LARGE = "video_too_large"  # over the limit of bytes or pixels
    VIDEO_TOO_COMPLEX = "video_too_complex"  # its frame takes too much memory or time
    VIDEO_UNSUPPORTED = "video_unsupported"  # the server has no decoder; the message says which
    FEATURES_UNREADABLE = "features_unreadable"  # not a .npy file, cut short, or base64 that is not
    FEATURES_TOO_LARGE = "features_too_large"  # over the byte limit
    TEXT_UNREADABLE = "text_unreadable"  # not UTF-8, NUL, or lone surrogates
    TEXT_TOO_LONG = "text_too_long"  # over the byte limit, or more tokens than the model has places
    INFERENCE_FAILED = "inference_failed"  # the graph failed on this item, alone
    REQUEST_KILLED_WORKER = "request_killed_worker"  # it stopped two workers; refused 10 min


class RequestError(VlserveError):
    """One request cannot be answered. An instance's code is one of `ErrorCode`."""

    code = "request_error"

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


MAX_QUOTED_CHARS = 50
"""Most characters of a caller's own words in a message."""


def quoted(words: Any) -> str:
    """Return a caller's words as a message quotes them: in quotes, cut to MAX_QUOTED_CHARS."""
    return repr(shortened(words))


def shortened(words: Any) -> str:
    """Return words that may be a caller's, cut to MAX_QUOTED_CHARS."""
    text = str(words)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[: MAX_QUOTED_CHARS - 1]}…"


def printable(text: str) -> str:
    """Return a text in which what steers a terminal, or breaks a line, is an escape."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


MAX_WRONG_FIELDS = 10
"""How many wrong fields a message names; it counts the rest."""


def wrong_fields(error: ValidationError, whole: str) -> str:
    """Name each wrong field with what is wrong, MAX_WRONG_FIELDS at most; ``whole`` names what is
    wrong as a whole."""
    wrong = [
        f"{shortened('.'.join(map(str, item['loc']))) or whole}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    more = [f"and {len(wrong) - MAX_WRONG_FIELDS} more"] if len(wrong) > MAX_WRONG_FIELDS else []
    return printable("; ".join(wrong[:MAX_WRONG_FIELDS] + more))
