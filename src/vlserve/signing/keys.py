"""Keys of signers in PEM, as OpenSSF model-signing has them: on P-256, P-384 and P-521."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from vlserve.errors import KeyUnusable

MAX_KEY_FILE_BYTES = 64 * 1024
MAX_KEYS_IN_A_FILE = 32
_BEGIN, _END = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"
_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
"""Curve -> the one hash that a signature with it is over."""
_WANTED = "an elliptic curve key on P-256, P-384 or P-521 is needed"


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with. ``name``: its file's, without the ending."""

    name: str
    key: ec.EllipticCurvePublicKey

    @cached_property
    def pem(self) -> str:
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @cached_property
    def hint(self) -> str:
        """What bundles call the key: the sha256 of its PEM."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` is this key's over ``content``."""
        try:
            self.key.verify(signature, content, _algorithm(self.key.curve))
        except InvalidSignature:
            return False
        return True


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return the signature of ``key`` over ``content``."""
    return key.sign(content, _algorithm(key.curve))


def _algorithm(curve: ec.EllipticCurve) -> ec.ECDSA:
    return ec.ECDSA(_HASHES[curve.name]())


def read_private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read a PEM file with one private key, not encrypted. KeyUnusable says what is wrong."""
    raw = read_small_file(file)
    try:
        key = load_pem_private_key(raw, password=None)
    except TypeError:
        raise KeyUnusable(
            f"{file} is encrypted: decrypt it first, as with `openssl pkey -in {file.name}`"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{file} holds no private key in PEM: {_WANTED}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise KeyUnusable(f"{file} holds {_kind(key)}: {_WANTED}")
    return key


def read_public_keys(file: Path) -> list[PublicKey]:
    """Read a PEM file of public keys. KeyUnusable where it is none, or one of them is no key."""
    raw = read_small_file(file)
    begins = raw.count(_BEGIN)
    if begins > MAX_KEYS_IN_A_FILE:
        raise KeyUnusable(f"{file} holds {begins} keys, more than {MAX_KEYS_IN_A_FILE}")
    blocks = [part.partition(_END)[0] for part in raw.split(_BEGIN)[1:]]
    if not blocks:
        raise KeyUnusable(
            f"{file} holds no public key in PEM: `openssl pkey -in KEY -pubout` writes it"
        )
    return [public_key(_BEGIN + block + _END + b"\n", file.stem, str(file)) for block in blocks]


def public_key(pem: bytes, name: str, where: str) -> PublicKey:
    """Return the key in ``pem``. KeyUnusable, with ``where``, for what is none that is taken."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{where} holds a public key that cannot be read: {_WANTED}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise KeyUnusable(f"{where} holds {_kind(key)}: {_WANTED}")
    return PublicKey(name, key)


def _kind(key: object) -> str:
    """Return what a key is that is not taken."""
    curve = getattr(key, "curve", None)
    if curve is not None:
        return f"a key on the curve {curve.name}"
    name = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"a key of the kind {name.lstrip('_')}"


def read_small_file(file: Path, max_bytes: int = MAX_KEY_FILE_BYTES) -> bytes:
    """Read a regular file, also by a link to it. A FIFO is not waited for. KeyUnusable."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise KeyUnusable(f"{file} cannot be read: {_why(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise KeyUnusable(f"{file} is no regular file")
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise KeyUnusable(f"{file} has more than {max_bytes} bytes")
    return raw


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
