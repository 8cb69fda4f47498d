"""What lies beside an archive: its signature, its provenance, and the list of its components."""

import os
from dataclasses import dataclass
from pathlib import Path

from vlserve.errors import KeyUnusable, SignatureUnreadable
from vlserve.signing.bundle import MAX_BUNDLE_BYTES
from vlserve.signing.keys import read_small_file

SIGNATURE_SUFFIX = ".sigstore.json"
PROVENANCE_SUFFIX = ".provenance.sigstore.json"
"""What the names of signature and provenance have beyond the archive's."""


@dataclass(frozen=True)
class SignatureFiles:
    """The bytes of an archive's signature, and of its provenance; empty where it has none."""

    signature: bytes
    provenance: bytes = b""


def signature_file(archive: Path) -> Path:
    return archive.with_name(archive.name + SIGNATURE_SUFFIX)


def provenance_file(archive: Path) -> Path:
    return archive.with_name(archive.name + PROVENANCE_SUFFIX)


def components_file(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.cdx.json")


def read_beside(archive: Path) -> SignatureFiles | None:
    """Read what lies beside ``archive``; None where it has no signature. SignatureUnreadable."""
    signature = _read(signature_file(archive))
    if signature is None:
        return None
    return SignatureFiles(signature, _read(provenance_file(archive)) or b"")


def write_beside(archive: Path, files: SignatureFiles) -> list[Path]:
    """Write the files beside ``archive``, each whole or not at all, and return those that there
    are."""
    paths = []
    for file, content in (
        (signature_file(archive), files.signature),
        (provenance_file(archive), files.provenance),
    ):
        if content:
            replace_file(file, content)
            paths.append(file)
        else:
            file.unlink(missing_ok=True)
    return paths


def remove_beside(archive: Path) -> None:
    """Remove signature and provenance of ``archive``, where they are there."""
    for file in (signature_file(archive), provenance_file(archive)):
        file.unlink(missing_ok=True)


def replace_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = file.with_name(f".{file.name}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def refuse_large(size: int, what: str) -> None:
    """Raise SignatureUnreadable for a bundle that is larger than any of an archive."""
    if size > MAX_BUNDLE_BYTES:
        raise SignatureUnreadable(f"{what} has {size} bytes, more than {MAX_BUNDLE_BYTES}")


def _read(file: Path) -> bytes | None:
    if not file.is_symlink() and not file.exists():
        return None
    try:
        return read_small_file(file, MAX_BUNDLE_BYTES)
    except KeyUnusable as error:
        raise SignatureUnreadable(str(error)) from error
