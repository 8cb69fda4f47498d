"""Archives that a caller names by an address, and the signatures beside them: files of the model
store, or what `control.allowed_urls` lets in. Nothing else is opened or asked for."""

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from vlserve.control import caller
from vlserve.errors import ArchiveNotFound, ArchiveTooSlow, SignatureUnreadable, UrlNotAllowed
from vlserve.runtime.errors import ArchiveTooLarge
from vlserve.signing.beside import PROVENANCE_SUFFIX, SIGNATURE_SUFFIX, SignatureFiles
from vlserve.signing.bundle import MAX_BUNDLE_BYTES

SUFFIX = ".mar"
"""Of all that the store gives: the ledger lies there too."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_KEPT = re.compile(r"(?P<model>[a-z][a-z0-9_-]*)-(?P<version>[1-9]\d{0,9})\.mar")
_BROKEN = re.compile(r"[\x00-\x20\x7f]")
"""What stands in no address. Readers of addresses differ in what they make of it."""
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\%;]")
"""What servers read in ways of their own, in a path that was unquoted once."""
_CHUNK_BYTES = 1024 * 1024
_FETCH_TIMEOUT_S = 60.0
"""Without a byte from the server."""
FETCH_TOTAL_S = 600.0
"""For the whole archive: a server that drips would hold the place of a load."""


@dataclass(frozen=True)
class Source:
    """An archive's bytes. ``size``: 0 where it is not known before they have come."""

    name: str
    size: int
    chunks: Iterator[bytes]


class _NothingThere(Exception):
    """An address without a file; another server says so, or that it does not give one."""


def signature_at(url: str, store: Path, prefixes: Sequence[str]) -> SignatureFiles | None:
    """Read the signature, and the provenance, beside the archive at ``url``; None where it has
    no signature. The arguments are those of `open_url`.

    Raises:
        SignatureUnreadable: it is larger than any of an archive.
        ArchiveNotFound: the other server fails, so that nobody knows whether there is one.
    """
    signature = _bundle_at(url, SIGNATURE_SUFFIX, store, prefixes)
    if signature is None:
        return None
    return SignatureFiles(signature, _bundle_at(url, PROVENANCE_SUFFIX, store, prefixes) or b"")


def _bundle_at(url: str, suffix: str, store: Path, prefixes: Sequence[str]) -> bytes | None:
    """Return what is at an archive's address with ``suffix``; None where nothing is there."""
    content = b""
    try:
        with _opened_url(url, suffix, store, prefixes) as source:
            for chunk in source.chunks:
                content += chunk
                if len(content) > MAX_BUNDLE_BYTES:
                    raise SignatureUnreadable(
                        f"{url}{suffix} has more than {MAX_BUNDLE_BYTES} bytes: no signature has"
                    )
    except _NothingThere:
        return None
    return content


@contextmanager
def open_url(url: str, store: Path, prefixes: Sequence[str], max_bytes: int) -> Iterator[Source]:
    """Open the archive at ``url``.

    Args:
        store: the model store, whose files are named without a scheme.
        prefixes: the addresses that others must begin with; folders, with a slash at their end.
        max_bytes: reading ends with an error beyond it.

    Raises:
        UrlNotAllowed: the address is not let in.
        ArchiveNotFound: there is no such file, or the other server does not give it.
        ArchiveTooLarge, ArchiveTooSlow: while it is read.
    """
    try:
        with _opened_url(url, "", store, prefixes) as source:
            yield Source(source.name, source.size, _bounded(source.chunks, max_bytes))
    except _NothingThere as error:
        raise ArchiveNotFound(str(error)) from error


@contextmanager
def _opened_url(url: str, suffix: str, store: Path, prefixes: Sequence[str]) -> Iterator[Source]:
    """Open what is beside the archive at ``url`` by that name with ``suffix``; "": itself."""
    try:
        if _BROKEN.search(url):
            raise ValueError("it has a space or a control character")
        split = urlsplit(url + suffix)
        scheme = split.scheme and _let_in(split, prefixes)
    except ValueError as error:
        raise UrlNotAllowed(f"{url!r} is no address: {error}") from error
    if scheme in ("http", "https"):
        with _fetched(url + suffix) as source:
            yield source
        return
    file = _resolved(Path(unquote(split.path))) if scheme else _in_store(url, suffix, store)
    with _opened(file, url + suffix) as source:
        yield source


def _let_in(split: SplitResult, prefixes: Sequence[str]) -> str:
    """Return the scheme of an address that is allowed."""
    path = unquote(split.path)
    plain = not (split.username or split.password or split.query or split.fragment)
    if plain and not _AMBIGUOUS.search(path) and not {"..", "."} & set(path.split("/")):
        for prefix in map(urlsplit, prefixes):
            if split.scheme == "file" == prefix.scheme and split.netloc in ("", "localhost"):
                if _resolved(Path(path)).is_relative_to(_resolved(Path(unquote(prefix.path)))):
                    return "file"
            elif _origin(split) == _origin(prefix) and path.startswith(unquote(prefix.path)):
                return split.scheme
    raise UrlNotAllowed(
        f"Given URL {split.geturl()} does not match any allowed URL(s): put the archive into the "
        "model store, or allow its folder with control.allowed_urls"
    )


def _origin(split: SplitResult) -> tuple[str, str | None, int]:
    port = split.port or {"http": 80, "https": 443}.get(split.scheme, 0)
    return split.scheme, split.hostname, port


def _in_store(name: str, suffix: str, store: Path) -> Path:
    """Return an archive of the model store by its name, one that lies in it or is kept there; with
    ``suffix``, the file of that name beside it."""
    if ".." in name:
        raise ArchiveNotFound(f"Relative path is not allowed in url: {name}")
    if not _NAME.fullmatch(name):
        raise ArchiveNotFound(f"Model not found at: {name}")
    match = _KEPT.fullmatch(name)
    places = [store / name]
    if match:
        places.append(store / match["model"] / match["version"] / name)
    for place in places:
        if _resolved(place).suffix == SUFFIX and _is_file_of(store, place):
            file = place.with_name(place.name + suffix)
            if _is_file_of(store, file):
                return _resolved(file)
            raise _NothingThere(f"Nothing found at: {name}{suffix}")
    raise ArchiveNotFound(f"Model not found at: {name}")


def _is_file_of(store: Path, path: Path) -> bool:
    file = _resolved(path)
    return file.is_relative_to(store.resolve()) and file.is_file()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise ArchiveNotFound(f"Model not found at: {path}, whose links lead nowhere") from error


@contextmanager
def _opened(file: Path, url: str) -> Iterator[Source]:
    try:
        # A pipe would wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _NothingThere(f"Model not found at: {url}") from error
    except OSError as error:
        raise ArchiveNotFound(f"Model not found at: {url}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ArchiveNotFound(f"Model not found at: {url}, which is no file")
        chunks = iter(lambda: os.read(descriptor, _CHUNK_BYTES), b"")
        yield Source(file.name, about.st_size, chunks)
    finally:
        os.close(descriptor)


@contextmanager
def _fetched(url: str) -> Iterator[Source]:
    """Ask another server, for the bytes as they are: an archive that it packed once more is none.
    A redirect is an answer like any other, and not followed."""
    try:
        with httpx.stream(
            "GET",
            url,
            headers={"Accept-Encoding": "identity"},
            timeout=_FETCH_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        ) as response:
            if response.is_redirect or response.is_client_error:
                raise _NothingThere(f"{url} answered {response.status_code}")
            if response.status_code != httpx.codes.OK:
                raise ArchiveNotFound(f"{url} answered {response.status_code}")
            length = response.headers.get("content-length", "")
            name = PurePosixPath(unquote(urlsplit(url).path)).name
            size = int(length) if length.isdecimal() else 0
            yield Source(name, size, _in_time(response.iter_raw(), url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ArchiveNotFound(f"{url} cannot be fetched: {error}") from error


def _in_time(chunks: Iterator[bytes], url: str) -> Iterator[bytes]:
    ends = time.monotonic() + FETCH_TOTAL_S
    for chunk in chunks:
        if time.monotonic() > ends:
            raise ArchiveTooSlow(
                f"{url} was not given within {FETCH_TOTAL_S:g} s: put the archive, and what "
                "`vlserve sign` wrote beside it, into the model store"
            )
        yield chunk


def _bounded(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        caller.refuse_if_gone("the archive was not read")
        size += len(chunk)
        if size > max_bytes:
            raise ArchiveTooLarge(
                f"the archive has more than {max_bytes} bytes: control.max_archive_bytes is the "
                "limit"
            )
        yield chunk
