"""Bundles are verified by one key over one statement; all else is refused in words."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from support.signers import KeyPair, key_pair
from vlserve.errors import SignatureMismatch, SignatureUnknownKey, SignatureUnreadable
from vlserve.signing.bundle import MAX_BUNDLE_BYTES, read_bundle, write_bundle
from vlserve.signing.statements import (
    check_provenance_subject,
    check_signature_subject,
    signature_statement,
)

SHA256 = hashlib.sha256(b"an archive").hexdigest()
OTHER = hashlib.sha256(b"another archive").hexdigest()


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("keys"), "release")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("keys"), "stranger")


@pytest.fixture(scope="module")
def signature(signer: KeyPair) -> bytes:
    return write_bundle(signature_statement("tagger-1.mar", SHA256), signer.key)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signature_is_its_keys(
    tmp_path: Path, stranger: KeyPair, curve: ec.EllipticCurve
) -> None:
    pair = key_pair(tmp_path, "own", curve)
    bundle = read_bundle(write_bundle(signature_statement("a.mar", SHA256), pair.key))
    assert bundle.signer([stranger.known, pair.known]) == pair.known
    check_signature_subject(bundle, SHA256)
    with pytest.raises(SignatureUnknownKey, match=pair.known.hint[:12]):
        bundle.signer([stranger.known])
    with pytest.raises(SignatureUnknownKey):
        bundle.signer([])


def test_the_hint_is_the_sha256_of_the_keys_file(signature: bytes, signer: KeyPair) -> None:
    hint = json.loads(signature)["verificationMaterial"]["publicKey"]["hint"]
    assert hint == hashlib.sha256(signer.public.read_bytes()).hexdigest()


def test_another_archives_signature_does_not_pass(signature: bytes) -> None:
    with pytest.raises(SignatureMismatch, match="other bytes"):
        check_signature_subject(read_bundle(signature), OTHER)


def test_a_signature_is_no_provenance(signature: bytes) -> None:
    with pytest.raises(SignatureUnreadable, match="slsa"):
        check_provenance_subject(read_bundle(signature), SHA256)


def resigned(signature: bytes, signer: KeyPair, change: Callable[[Any], object]) -> bytes:
    """Sign a changed statement anew."""
    statement = json.loads(read_bundle(signature).payload)
    change(statement)
    return write_bundle(statement, signer.key)


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda statement: statement.update(predicate={}),
        lambda statement: statement["predicate"]["resources"].append(
            statement["predicate"]["resources"][0]
        ),
        lambda statement: statement["predicate"]["resources"][0].update(algorithm="blake2b"),
        lambda statement: statement.update(subject=[]),
        lambda statement: statement.update(subject=statement["subject"] * 2),
    ],
)
def test_statements_that_say_no_one_archive_are_refused(
    signature: bytes, signer: KeyPair, change: Callable[[Any], object]
) -> None:
    with pytest.raises(SignatureUnreadable):
        check_signature_subject(read_bundle(resigned(signature, signer, change)), SHA256)


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement["subject"][0]["digest"].update(sha256=OTHER),
        lambda statement: statement["subject"][0].update(digest="none"),
        lambda statement: statement["predicate"]["resources"][0].update(digest=OTHER),
    ],
)
def test_subject_and_resource_say_the_same_bytes(
    signature: bytes, signer: KeyPair, change: Callable[[Any], object]
) -> None:
    with pytest.raises(SignatureMismatch):
        check_signature_subject(read_bundle(resigned(signature, signer, change)), SHA256)


def edited(signature: bytes, change: Callable[[Any], object]) -> bytes:
    """Change the bundle around a signature."""
    bundle = json.loads(signature)
    change(bundle)
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
            "mediaType",
        ),
        (lambda b: b.pop("dsseEnvelope"), "no DSSE envelope"),
        (lambda b: b.update(dsseEnvelope=[]), "no DSSE envelope"),
        (
            lambda b: b.update(verificationMaterial={"certificate": {"rawBytes": ""}}),
            "certificates",
        ),
        (lambda b: b.update(verificationMaterial=None), "certificates"),
        (lambda b: b["verificationMaterial"]["publicKey"].update(hint=7), "no text"),
        (lambda b: b["dsseEnvelope"].update(payloadType="text/plain"), "payloadType"),
        (lambda b: b["dsseEnvelope"].update(signatures=[]), "0 signatures"),
        (
            lambda b: b["dsseEnvelope"].update(signatures=b["dsseEnvelope"]["signatures"] * 2),
            "2 signatures",
        ),
        (lambda b: b["dsseEnvelope"].update(signatures={}), "no list of"),
        (lambda b: b["dsseEnvelope"].update(signatures=["x"]), "signature that is not"),
        (lambda b: b["dsseEnvelope"].update(payload="!!"), "payload that is not"),
        (lambda b: b["dsseEnvelope"].update(payload=7), "payload that is not"),
        (lambda b: b["dsseEnvelope"].update(payload="W10="), "no JSON object"),
        (lambda b: b["dsseEnvelope"].update(payload="e30="), "_type"),
    ],
)
def test_other_bundles_are_refused_in_words(
    signature: bytes, change: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(SignatureUnreadable, match=message):
        read_bundle(edited(signature, change))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"mediaType": 1, "mediaType": 2}',
        b" " * (MAX_BUNDLE_BYTES + 1),
    ],
)
def test_what_is_no_bundle_is_refused(raw: bytes) -> None:
    with pytest.raises(SignatureUnreadable):
        read_bundle(raw)


def test_a_bundle_cut_anywhere_is_refused(signature: bytes) -> None:
    for length in range(0, len(signature.rstrip()) - 1, 37):
        with pytest.raises(SignatureUnreadable):
            read_bundle(signature[:length])


def test_a_repeated_key_inside_of_the_statement_is_refused(
    signer: KeyPair, signature: bytes
) -> None:
    payload = read_bundle(signature).payload.replace(b'{"_type"', b'{"_type": "x", "_type"', 1)
    raw = edited(
        signature, lambda b: b["dsseEnvelope"].update(payload=base64.b64encode(payload).decode())
    )
    with pytest.raises(SignatureUnreadable, match="twice"):
        read_bundle(raw)


def test_a_changed_payload_or_signature_does_not_pass(signature: bytes, signer: KeyPair) -> None:
    bundle = read_bundle(signature)
    payload = base64.b64encode(bundle.payload.replace(b"tagger-1", b"tagger-2")).decode()
    forgery = base64.b64encode(bundle.signature[:-1] + bytes([bundle.signature[-1] ^ 1])).decode()
    for change in (
        lambda b: b["dsseEnvelope"].update(payload=payload),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=forgery),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
    ):
        with pytest.raises(SignatureMismatch, match="did not sign"):
            read_bundle(edited(signature, change)).signer([signer.known])


def test_a_bundle_without_a_hint_is_tried_with_each_key(
    signature: bytes, signer: KeyPair, stranger: KeyPair
) -> None:
    bare = read_bundle(
        edited(signature, lambda b: b["verificationMaterial"]["publicKey"].pop("hint"))
    )
    assert bare.signer([stranger.known, signer.known]) == signer.known
    with pytest.raises(SignatureUnknownKey):
        bare.signer([stranger.known])


def test_the_hint_of_another_key_does_not_make_it_that_keys(
    signature: bytes, signer: KeyPair, stranger: KeyPair
) -> None:
    raw = edited(
        signature,
        lambda b: b["verificationMaterial"]["publicKey"].update(hint=stranger.known.hint),
    )
    with pytest.raises(SignatureMismatch, match="stranger"):
        read_bundle(raw).signer([signer.known, stranger.known])


def test_each_curve_has_one_hash(tmp_path: Path) -> None:
    """P-384 signs over SHA-384: over SHA-256 the same key's signature does not pass."""
    pair = key_pair(tmp_path, "own", ec.SECP384R1())
    raw = write_bundle(signature_statement("a.mar", SHA256), pair.key)
    payload = read_bundle(raw).payload
    kind = b"application/vnd.in-toto+json"
    content = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    wrong = base64.b64encode(pair.key.sign(content, ec.ECDSA(hashes.SHA256()))).decode()
    with pytest.raises(SignatureMismatch):
        variant = edited(raw, lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=wrong))
        read_bundle(variant).signer([pair.known])


def test_a_signature_over_the_payload_alone_does_not_pass(
    signature: bytes, signer: KeyPair
) -> None:
    bare = signer.key.sign(read_bundle(signature).payload, ec.ECDSA(hashes.SHA256()))
    sig = base64.b64encode(bare).decode()
    with pytest.raises(SignatureMismatch):
        variant = edited(signature, lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=sig))
        read_bundle(variant).signer([signer.known])
