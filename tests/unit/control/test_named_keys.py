"""The file of named keys: names, limits, hashes, and two commands at once."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from vlserve.control.named_keys import (
    KEYS_FILE,
    MOST_KEYS,
    MOST_REVOKED,
    OWNER,
    NamedKeys,
    Role,
)
from vlserve.errors import NamedKeysError


@pytest.fixture
def keys(tmp_path: Path) -> NamedKeys:
    return NamedKeys(tmp_path / "store")


def test_a_key_is_kept_as_its_hash_in_a_file_of_the_owner_s(
    keys: NamedKeys, tmp_path: Path
) -> None:
    assert keys.listed() == () and not keys.any_in_force()
    key = keys.add("ci", [Role.RELEASE])
    file = tmp_path / "store" / KEYS_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(key) >= 43 and key not in file.read_text(encoding="utf-8")
    holder = keys.holder_of(key)
    assert holder is not None
    assert (holder.name, holder.roles) == ("ci", {Role.READ, Role.RELEASE})
    assert keys.is_in_force(holder) and keys.any_in_force()
    other = NamedKeys(tmp_path / "store")
    assert other.holder_of(key) == holder
    keys.revoke("ci")
    assert other.holder_of(key) is None and not other.is_in_force(holder)
    (entry,) = other.listed()
    assert (entry.name, entry.sha256) == ("ci", "") and entry.revoked_at
    assert holder.sha256 not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["", "owner", "judge", "trust", "Ci", "1st", "a b", "a/b", "é", "a" * 64]
)
def test_a_name_stands_in_the_history_and_is_nobody_else_s(keys: NamedKeys, name: str) -> None:
    with pytest.raises(NamedKeysError, match="no name of a key"):
        keys.add(name, [Role.READ])
    assert not keys.is_in_force(OWNER.__class__(name, OWNER.roles)) or name == "owner"


def test_a_name_has_one_key(keys: NamedKeys) -> None:
    first = keys.add("ci", [Role.READ])
    with pytest.raises(NamedKeysError, match="already: `vlserve keys revoke ci`"):
        keys.add("ci", [Role.REGISTER])
    keys.revoke("ci")
    with pytest.raises(NamedKeysError, match=r"no key 'ci' is in force \(in force: none\)"):
        keys.revoke("ci")
    second = keys.add("ci", [Role.REGISTER])
    assert keys.holder_of(first) is None and keys.holder_of(second) is not None
    assert [key.name for key in keys.listed()] == ["ci"]


def test_there_are_so_many_keys_at_the_most(
    keys: NamedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.control.named_keys.os.fsync", lambda _: None)
    for number in range(MOST_KEYS):
        keys.add(f"key-{number}", [Role.READ])
    with pytest.raises(NamedKeysError, match=f"{MOST_KEYS} keys are in force"):
        keys.add("one-more", [Role.READ])
    for number in range(MOST_REVOKED + 5):
        name = f"key-{number}" if number < MOST_KEYS else f"new-{number}"
        if number >= MOST_KEYS:
            keys.add(name, [Role.READ])
        keys.revoke(name)
    entries = keys.listed()
    assert len(entries) == MOST_REVOKED and "key-0" not in {key.name for key in entries}


def test_two_that_add_keys_at_once_lose_none(tmp_path: Path) -> None:
    def add(number: int) -> None:
        NamedKeys(tmp_path).add(f"key-{number}", [Role.READ])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(NamedKeys(tmp_path).listed()) == 12


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    elsewhere, store = tmp_path / "elsewhere", tmp_path / "store"
    key = NamedKeys(elsewhere).add("ci", [Role.READ])
    store.mkdir()
    (store / KEYS_FILE).symlink_to(elsewhere / KEYS_FILE)
    keys = NamedKeys(store)
    assert keys.holder_of(key) is None
    assert "no named key is in force" in keys.trouble()


def test_a_key_with_the_owner_s_role_in_the_file_is_not_the_owner_s(tmp_path: Path) -> None:
    keys = NamedKeys(tmp_path)
    key = keys.add("ci", [Role.READ])
    file = tmp_path / KEYS_FILE
    contents = json.loads(file.read_text(encoding="utf-8"))
    contents["keys"][0]["roles"] = ["read", "owner"]
    file.write_text(json.dumps(contents), encoding="utf-8")
    assert keys.holder_of(key) is None and "owner" in keys.trouble()


def test_keys_that_could_not_be_read_for_a_moment_are_in_force_again(
    keys: NamedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.add("anna", [])
    with monkeypatch.context() as patch:
        patch.setattr("vlserve.control.named_keys.os.open", _no_descriptor)
        assert keys.holder_of(key) is None
        assert "Too many open files" in keys.trouble()
    assert keys.holder_of(key) is not None
    assert keys.trouble() == ""


def _no_descriptor(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
