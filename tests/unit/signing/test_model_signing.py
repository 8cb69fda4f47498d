"""Our signatures held against the package model-signing of OpenSSF, and its against ours."""

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from support.signers import KeyPair, key_pair
from vlserve.errors import SignatureMismatch
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import file_sha256
from vlserve.signing.archives import sign_archive
from vlserve.signing.beside import components_file, signature_file
from vlserve.signing.bundle import read_bundle
from vlserve.signing.statements import check_signature_subject


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack_echo(tmp_path, "tagger", 1)


def model_signing(*words: str | Path) -> Result:
    from model_signing._cli import main

    return CliRunner().invoke(main, list(map(str, words)))


def verified(archive: Path, signature: Path, pair: KeyPair) -> Result:
    words = ("--signature", signature, "--public_key", pair.public, archive)
    return model_signing("verify", "key", *words)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_model_signing_verifies_ours(
    archive: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    pair = key_pair(tmp_path, "release", curve)
    sign_archive(archive, pair.key)
    result = verified(archive, signature_file(archive), pair)
    assert result.exit_code == 0, result.output
    archive.write_bytes(archive.read_bytes() + b"x")
    assert verified(archive, signature_file(archive), pair).exit_code != 0


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_we_verify_model_signings(archive: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    pair = key_pair(tmp_path, "release", curve)
    signature = signature_file(archive)
    words = ("--signature", signature, "--private_key", pair.private, archive)
    result = model_signing("sign", "key", *words)
    assert result.exit_code == 0, result.output
    bundle = read_bundle(signature.read_bytes())
    check_signature_subject(bundle, file_sha256(archive))
    assert bundle.signer([pair.known]) == pair.known
    with pytest.raises(SignatureMismatch):
        check_signature_subject(bundle, "0" * 64)


def test_components_follow_the_schema_of_cyclonedx(archive: Path, tmp_path: Path) -> None:
    import cyclonedx.schema

    sign_archive(archive, key_pair(tmp_path, "release").key)
    [folder] = cyclonedx.schema.__path__
    schema = Path(folder) / "_res" / "bom-1.6.SNAPSHOT.schema.json"
    content = json.loads(schema.read_text(encoding="utf-8"))
    components = json.loads(components_file(archive).read_bytes())
    jsonschema.Draft7Validator(content).validate(components)
