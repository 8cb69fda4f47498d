"""Which files are keys, and what is said of those that are not."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from support.signers import key_pair, private_pem, public_pem
from vlserve.errors import KeyUnusable
from vlserve.signing.keys import (
    MAX_KEY_FILE_BYTES,
    MAX_KEYS_IN_A_FILE,
    read_private_key,
    read_public_keys,
)


def test_a_file_may_hold_several_keys(tmp_path: Path) -> None:
    pairs = [key_pair(tmp_path, name) for name in ("first", "second")]
    both = tmp_path / "both.pem"
    both.write_bytes(b"# ours\n" + b"".join(pair.public.read_bytes() for pair in pairs))
    assert [key.hint for key in read_public_keys(both)] == [pair.known.hint for pair in pairs]
    assert [key.name for key in read_public_keys(both)] == ["both", "both"]


def test_a_link_to_a_key_is_followed(tmp_path: Path) -> None:
    pair = key_pair(tmp_path, "own")
    link = tmp_path / "link.pem"
    link.symlink_to(pair.public)
    assert [key.hint for key in read_public_keys(link)] == [pair.known.hint]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
)
def test_other_kinds_of_keys_are_named(tmp_path: Path, key: object, kind: str) -> None:
    (tmp_path / "own.key").write_bytes(private_pem(key))
    (tmp_path / "own.pem").write_bytes(public_pem(key))
    with pytest.raises(KeyUnusable, match=rf"{kind}.*P-256, P-384 or P-521"):
        read_private_key(tmp_path / "own.key")
    with pytest.raises(KeyUnusable, match=rf"{kind}.*P-256, P-384 or P-521"):
        read_public_keys(tmp_path / "own.pem")


def test_a_key_that_is_encrypted_is_refused(tmp_path: Path) -> None:
    pair = key_pair(tmp_path, "own")
    encryption = BestAvailableEncryption(b"secret")
    pem = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    pair.private.write_bytes(pem)
    with pytest.raises(KeyUnusable, match="is encrypted"):
        read_private_key(pair.private)


def test_files_that_are_no_keys_are_refused_and_none_is_waited_for(tmp_path: Path) -> None:
    pair = key_pair(tmp_path, "own")
    fifo, large, empty = tmp_path / "fifo", tmp_path / "large", tmp_path / "empty"
    os.mkfifo(fifo)
    large.write_bytes(b"x" * (MAX_KEY_FILE_BYTES + 1))
    empty.touch()
    cut = tmp_path / "cut"
    cut.write_bytes(pair.public.read_bytes()[:80])
    for file, why in (
        (tmp_path, "no regular file"),
        (fifo, "no regular file"),
        (tmp_path / "none", "No such file"),
        (Path("/dev/zero"), "no regular file"),
        (large, "more than"),
        (empty, "no public key"),
        (pair.private, "no public key"),
        (cut, "cannot be read"),
    ):
        with pytest.raises(KeyUnusable, match=why):
            read_public_keys(file)
    with pytest.raises(KeyUnusable, match="no private key"):
        read_private_key(pair.public)


def test_the_number_of_keys_is_bounded(tmp_path: Path) -> None:
    many = tmp_path / "many.pem"
    many.write_bytes(key_pair(tmp_path, "own").public.read_bytes() * (MAX_KEYS_IN_A_FILE + 1))
    with pytest.raises(KeyUnusable, match=f"more than {MAX_KEYS_IN_A_FILE}"):
        read_public_keys(many)
