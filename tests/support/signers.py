"""Keys of signers as PEM files, and archives signed with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vlserve.signing.keys import PublicKey


@dataclass(frozen=True)
class KeyPair:
    """A private key's file, and the file of its public key."""

    private: Path
    public: Path
    key: ec.EllipticCurvePrivateKey

    @property
    def known(self) -> PublicKey:
        return PublicKey(self.public.stem, self.key.public_key())


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def key_pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> KeyPair:
    """Write NAME.key and NAME.pem into ``folder``."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    pair = KeyPair(folder / f"{name}.key", folder / f"{name}.pem", key)
    pair.private.write_bytes(private_pem(key))
    pair.public.write_bytes(public_pem(key))
    return pair
