"""What is said of an archive and signed: which bytes it has, and how they came to be."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlserve.errors import SignatureMismatch, SignatureUnreadable
from vlserve.runtime.manifest import Manifest
from vlserve.signing.bundle import STATEMENT_TYPE, Bundle, shown

SIGNATURE = "https://model_signing/signature/v1.0"
"""Predicate type of OpenSSF model-signing."""
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:vlserve:export:1"
BUILDER = "urn:vlserve"
_SINGLE_FILE = "."
"""How model-signing names the one file of a model."""


def signature_statement(name: str, sha256: str) -> Mapping[str, Any]:
    """Return the statement of OpenSSF model-signing on one file.

    The file's name is not bound: a renamed copy verifies. Model and version are, because they stand
    in the manifest inside of the archive.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(sha256)}}],
        "predicateType": SIGNATURE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [{"name": _SINGLE_FILE, "algorithm": "sha256", "digest": sha256}],
        },
    }


def provenance_statement(
    name: str, sha256: str, manifest: Manifest, vlserve: str
) -> Mapping[str, Any]:
    """Return the SLSA provenance of an archive: what its manifest says that it was made of.

    Args:
        name: the archive's file name.
        vlserve: the version of vlserve that writes the statement.
    """
    parameters = manifest.model_dump(
        mode="json", include={"model", "version", "task", "family", "precision"}
    )
    figures = {
        "parity": manifest.parity and manifest.parity.model_dump(mode="json"),
        "int8_gate": manifest.quantization and manifest.quantization.model_dump(mode="json"),
        "evaluation": _evaluation(manifest),
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "resolvedDependencies": [
                    {"name": material, "digest": {"sha256": digest}}
                    for material, digest in materials(manifest)
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"vlserve": vlserve}},
                "byproducts": [
                    {
                        "name": figure,
                        "mediaType": "application/json",
                        "content": base64.b64encode(json.dumps(value).encode()).decode(),
                    }
                    for figure, value in figures.items()
                    if value
                ],
            },
        },
    }


def materials(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what an archive was made of, with the sha256 of each: checkpoint, data, lock, code."""
    digests = {
        "checkpoint": manifest.checkpoint_sha256,
        "requirements.lock": manifest.lock_sha256,
        "calibration data": manifest.quantization and manifest.quantization.calibration_sha256,
        "adopted archive": manifest.adopted and manifest.adopted.sha256,
    }
    yield from ((name, digest) for name, digest in digests.items() if digest)
    training = manifest.training or {}
    code = training.get("code")
    training_fields = {**training, **(code if isinstance(code, dict) else {})}
    yield from (
        (f"training {name.removesuffix('_sha256')}", digest)
        for name, digest in training_fields.items()
        if name.endswith("_sha256") and isinstance(digest, str)
    )
    yield from ((name, sha256) for name, sha256 in manifest.files.items() if name.endswith(".py"))


def _evaluation(manifest: Manifest) -> Any:
    """Return the figures of the best epoch's weights, as the run that trained them has them."""
    return (manifest.training or {}).get("evaluation")


def check_signature_subject(bundle: Bundle, sha256: str) -> None:
    """Make sure that a bundle is a model-signing signature on the archive of these bytes.

    Raises:
        SignatureUnreadable: it is another statement, or over more than one file.
        SignatureMismatch: it is on other bytes.
    """
    _check_kind(bundle, SIGNATURE)
    predicate = bundle.statement.get("predicate")
    resources = predicate.get("resources") if isinstance(predicate, dict) else None
    if not isinstance(resources, list) or len(resources) != 1:
        raise SignatureUnreadable("is not over one file alone, as an archive is")
    resource = resources[0] if isinstance(resources[0], dict) else {}
    if resource.get("algorithm") != "sha256":
        kind = shown(resource.get("algorithm"))
        raise SignatureUnreadable(f"is over a digest of the kind {kind}: sha256 is read")
    if resource.get("digest") != sha256 or _subject_digest(bundle) != _root(sha256):
        raise SignatureMismatch("is on other bytes than the archive's")


def check_provenance_subject(bundle: Bundle, sha256: str) -> None:
    """Likewise of an archive's provenance."""
    _check_kind(bundle, PROVENANCE)
    if _subject_digest(bundle) != sha256:
        raise SignatureMismatch("is on other bytes than the archive's")


def _check_kind(bundle: Bundle, kind: str) -> None:
    predicate_type = bundle.statement.get("predicateType")
    if predicate_type != kind:
        raise SignatureUnreadable(f"says {shown(predicate_type)}, and {kind} is needed")


def _subject_digest(bundle: Bundle) -> object:
    subjects = bundle.statement.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise SignatureUnreadable("is not on one subject")
    digest = subjects[0].get("digest")
    return digest.get("sha256") if isinstance(digest, dict) else None


def _root(sha256: str) -> str:
    """Return model-signing's digest of a model: over the raw digests of its files."""
    return hashlib.sha256(bytes.fromhex(sha256)).hexdigest()
