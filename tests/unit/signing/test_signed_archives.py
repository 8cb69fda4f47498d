"""An archive signed: its bytes stay, and provenance and components say what it was made of."""

import base64
import json
from pathlib import Path

import pytest

from support.signers import KeyPair, key_pair
from vlserve.errors import ArchiveError, SignatureMismatch, SignatureUnreadable
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.manifest import Manifest, Parity
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import (
    components_file,
    provenance_file,
    read_beside,
    signature_file,
)
from vlserve.signing.bundle import MAX_BUNDLE_BYTES, read_bundle
from vlserve.signing.components import locked_libraries
from vlserve.signing.statements import check_provenance_subject, provenance_statement

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("keys"), "release")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack_echo(tmp_path, "tagger", 1)


def test_three_files_lie_beside_an_archive_that_stays(archive: Path, signer: KeyPair) -> None:
    before = archive.read_bytes()
    result = sign_archive(archive, signer.key)
    assert archive.read_bytes() == before
    assert [file.name for file in result.written] == [
        "tagger-1.mar.sigstore.json",
        "tagger-1.mar.provenance.sigstore.json",
        "tagger-1.mar.cdx.json",
    ]
    files = read_beside(archive)
    assert files is not None
    for raw in (files.signature, files.provenance):
        assert read_bundle(raw).signer([signer.known]) == signer.known


def test_the_provenance_is_on_the_archives_bytes(archive: Path, signer: KeyPair) -> None:
    sign_archive(archive, signer.key)
    bundle = read_bundle(provenance_file(archive).read_bytes())
    check_provenance_subject(bundle, file_sha256(archive))
    with pytest.raises(SignatureMismatch):
        check_provenance_subject(bundle, DIGEST)


def test_provenance_names_hashes_and_figures(archive: Path) -> None:
    manifest = verify_archive(archive).model_copy(
        update={
            "checkpoint_sha256": DIGEST,
            "lock_sha256": DIGEST[::-1],
            "parity": Parity(cases=3, max_abs_diff=1e-6, rtol=1e-4, atol=1e-5),
            "training": {
                "train_sha256": "cd" * 32,
                "code": {"sources_sha256": "ef" * 32},
                "evaluation": {"accuracy": {"value": 0.9}},
            },
        }
    )
    predicate = provenance_statement(archive.name, DIGEST, manifest, "1.0")["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    digests = {
        entry["name"]: entry["digest"]["sha256"] for entry in definition["resolvedDependencies"]
    }
    assert digests["checkpoint"] == DIGEST
    assert digests["requirements.lock"] == DIGEST[::-1]
    assert digests["training train"] == "cd" * 32
    assert digests["training sources"] == "ef" * 32
    code = {name for name in manifest.files if name.endswith(".py")}
    assert code and code < set(digests)
    figures = {
        entry["name"]: json.loads(base64.b64decode(entry["content"]))
        for entry in details["byproducts"]
    }
    assert figures == {
        "parity": {"cases": 3, "max_abs_diff": 1e-6, "rtol": 1e-4, "atol": 1e-5},
        "evaluation": {"accuracy": {"value": 0.9}},
    }
    assert definition["externalParameters"]["model"] == "tagger"


def test_components_are_the_files_and_what_they_were_made_of(
    archive: Path, signer: KeyPair
) -> None:
    sign_archive(archive, signer.key)
    components = json.loads(components_file(archive).read_bytes())
    main = components["metadata"]["component"]
    assert (main["type"], main["name"], main["version"]) == (
        "machine-learning-model",
        "tagger",
        "1",
    )
    assert main["hashes"] == [{"alg": "SHA-256", "content": file_sha256(archive)}]
    manifest: Manifest = verify_archive(archive)
    files = {
        component["name"]: component["hashes"][0]["content"]
        for component in components["components"]
        if component["type"] == "file"
    }
    assert files == manifest.files


def test_what_is_no_archive_is_not_signed(tmp_path: Path, signer: KeyPair) -> None:
    file = tmp_path / "tagger-1.mar"
    file.write_bytes(b"none")
    with pytest.raises(ArchiveError):
        sign_archive(file, signer.key)
    assert list(tmp_path.iterdir()) == [file]


def test_what_lies_beside_is_bounded(archive: Path, signer: KeyPair) -> None:
    assert read_beside(archive) is None
    sign_archive(archive, signer.key)
    signature_file(archive).write_bytes(b" " * (MAX_BUNDLE_BYTES + 1))
    with pytest.raises(SignatureUnreadable, match="more than"):
        read_beside(archive)
    signature_file(archive).unlink()
    signature_file(archive).mkdir()
    with pytest.raises(SignatureUnreadable, match="no regular file"):
        read_beside(archive)


def test_libraries_of_a_lock_have_their_hashes() -> None:
    hashes = [f"--hash=sha256:{DIGEST}", f"--hash=sha256:{DIGEST[::-1]}"]
    lock = " \\\n    ".join(["# a lock\nFirst.Name==1.0+cpu", *hashes]) + "\nsecond==2\n"
    first, second = locked_libraries(lock)
    assert (first["purl"], second["purl"]) == ("pkg:pypi/first-name@1.0%2Bcpu", "pkg:pypi/second@2")
    [reference] = first["externalReferences"]
    assert [entry["content"] for entry in reference["hashes"]] == [DIGEST, DIGEST[::-1]]
    assert second["externalReferences"] == []
