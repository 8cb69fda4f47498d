"""Sigstore bundles v0.3 with a DSSE envelope, signed by a key: written, read and verified.

The format: https://github.com/sigstore/protobuf-specs (bundle), https://github.com/secure-systems-lab/dsse
(envelope), https://github.com/in-toto/attestation (the statement inside). One signature of one key,
over a statement on one archive.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from vlserve.errors import SignatureMismatch, SignatureUnknownKey, SignatureUnreadable
from vlserve.runtime.archive import without_repeats
from vlserve.signing.keys import PublicKey, sign

MAX_BUNDLE_BYTES = 256 * 1024
"""Of one bundle; a signature of an archive takes about 2 KB, its provenance about 15 KB."""
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_SHOWN_CHARS = 80


@dataclass(frozen=True)
class Bundle:
    """What a bundle says. ``hint``: which key signed, as the sha256 of its PEM; empty where it does
    not say. ``statement``: the payload, parsed; nothing of it holds before the signature does."""

    hint: str
    payload: bytes
    signature: bytes
    statement: Mapping[str, Any]

    def signer(self, keys: Sequence[PublicKey]) -> PublicKey:
        """Return the key that signed it.

        Raises:
            SignatureUnknownKey: it is none of ``keys``.
            SignatureMismatch: it names one of them, which did not sign this.
        """
        content = _encoded(self.payload)
        candidates = [key for key in keys if self.hint in ("", key.hint)]
        for key in candidates:
            if key.has_signed(content, self.signature):
                return key
        if candidates and self.hint:
            raise SignatureMismatch(
                f"names the key {candidates[0].name} ({self.hint[:12]}…), which did not sign this"
            )
        which = f"the key {self.hint[:12]}…" if self.hint else "a key that it does not name"
        raise SignatureUnknownKey(f"is signed by {which}, which is none of those that are trusted")


def write_bundle(statement: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a bundle of ``statement``, signed with ``key``."""
    payload = json.dumps(statement, ensure_ascii=False, sort_keys=True).encode()
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": PublicKey("", key.public_key()).hint},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"sig": base64.b64encode(sign(key, _encoded(payload))).decode(), "keyid": ""}
            ],
        },
    }
    return json.dumps(bundle, indent=1).encode() + b"\n"


def read_bundle(raw: bytes) -> Bundle:
    """Parse a bundle; no signature is verified. SignatureUnreadable says what is wrong with it."""
    if len(raw) > MAX_BUNDLE_BYTES:
        raise SignatureUnreadable(f"has more than {MAX_BUNDLE_BYTES} bytes")
    bundle = _json_object(raw, "is")
    _expect(bundle, "mediaType", MEDIA_TYPE)
    envelope = bundle.get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise SignatureUnreadable("holds no DSSE envelope")
    _expect(envelope, "payloadType", PAYLOAD_TYPE)
    payload = _decoded(envelope.get("payload"), "payload")
    statement = _json_object(payload, "is over a statement that is")
    _expect(statement, "_type", STATEMENT_TYPE)
    return Bundle(
        _hint(bundle.get("verificationMaterial")),
        payload,
        _decoded(_only_signature(envelope), "signature"),
        statement,
    )


def _expect(part: Mapping[str, Any], name: str, value: str) -> None:
    if part.get(name) != value:
        raise SignatureUnreadable(f"has the {name} {shown(part.get(name))}: {value} is read")


def _hint(material: object) -> str:
    """Return which key signed, as the verification material says."""
    public_key = material.get("publicKey") if isinstance(material, dict) else None
    if not isinstance(public_key, dict):
        raise SignatureUnreadable("is not signed by a key: certificates are not verified")
    hint = public_key.get("hint") or ""
    if not isinstance(hint, str):
        raise SignatureUnreadable(f"names its key by {shown(hint)}, which is no text")
    return hint


def _only_signature(envelope: Mapping[str, Any]) -> object:
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        number = len(signatures) if isinstance(signatures, list) else "no list of"
        raise SignatureUnreadable(f"holds {number} signatures: exactly one is read")
    return signatures[0].get("sig") if isinstance(signatures[0], dict) else None


def _encoded(payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _decoded(text: object, what: str) -> bytes:
    try:
        if isinstance(text, str) and text:
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise SignatureUnreadable(f"has a {what} that is not in base64")


def _json_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise SignatureUnreadable(f"{what} no JSON: {shown(str(error))}") from None
    if not isinstance(content, dict):
        raise SignatureUnreadable(f"{what} no JSON object")
    return content


def shown(value: object) -> str:
    """Return what a message shows of a value that a bundle has."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
