"""An archive signed: its signature, provenance and list of components, written beside it."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.manifest import Manifest
from vlserve.signing.beside import (
    SignatureFiles,
    components_file,
    replace_file,
    write_beside,
)
from vlserve.signing.bundle import write_bundle
from vlserve.signing.components import component_list, hashed
from vlserve.signing.keys import PublicKey
from vlserve.signing.statements import materials, provenance_statement, signature_statement


@dataclass(frozen=True)
class SignedArchive:
    """What was signed, and written. ``key``: the sha256 of the public key's PEM."""

    archive: Path
    sha256: str
    key: str
    written: tuple[Path, ...]


def sign_archive(archive: Path, key: ec.EllipticCurvePrivateKey) -> SignedArchive:
    """Write the signature of ``archive``, its provenance and its components beside it. Its own
    bytes do not change.

    Raises:
        ArchiveError: it is no archive that could be registered.
    """
    manifest = verify_archive(archive)
    sha256 = file_sha256(archive)
    vlserve = importlib.metadata.version("vlserve")
    provenance = provenance_statement(archive.name, sha256, manifest, vlserve)
    files = SignatureFiles(
        write_bundle(signature_statement(archive.name, sha256), key), write_bundle(provenance, key)
    )
    main = hashed("machine-learning-model", manifest.model, sha256, version=str(manifest.version))
    components = components_file(archive)
    replace_file(components, component_list(main, list(_components(manifest)), vlserve))
    paths = (*write_beside(archive, files), components)
    return SignedArchive(archive, sha256, PublicKey("", key.public_key()).hint, paths)


def _components(manifest: Manifest) -> Iterator[Mapping[str, Any]]:
    """Yield the files of an archive, and what they were made of."""
    yield from (hashed("file", name, sha256) for name, sha256 in sorted(manifest.files.items()))
    yield from (
        hashed("data", name, sha256)
        for name, sha256 in materials(manifest)
        if name not in manifest.files
    )
