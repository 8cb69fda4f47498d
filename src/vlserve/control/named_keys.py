"""Keys beside the owner's, each with a name and roles.

They lie as hashes in one file of the model store, which the control service reads anew when it has
changed: a key that is revoked opens nothing from the next request on. A key is 32 random bytes, so
a plain sha256 of it tells nothing, and a wrong one costs one hash and a comparison with each key.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlserve.control.key import write_private
from vlserve.errors import NamedKeysError
from vlserve.lock_holders import holder_of, lock_within, open_lock

KEYS_FILE = "keys.json"
MOST_KEYS = 100
"""Named keys in force."""
MOST_REVOKED = 100
"""Names of revoked keys that are remembered; the oldest of more are forgotten."""
MAX_KEY_CHARS = 128
"""Of what a caller offers as a key; more is none."""
RESERVED_NAMES = frozenset({"owner", "judge", "trust", "user", "console"})
"""Who else stands in the history as the one who acted."""
NAME_RULE = (
    "lower-case letters, digits, . - and _, a letter first, 63 characters at most, and not "
    "owner, judge, trust, user or console"
)
_PREFIX = "vlserve_"
"""By which scanners for secrets find a key that was written down."""
_RANDOM_BYTES = 32
_MOST_BYTES = 1024 * 1024
_LOCK_S = 10.0
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")


class Role(StrEnum):
    """What a caller may do. Every key may read; OWNER is the owner's file alone."""

    READ = "read"
    RELEASE = "release"
    REGISTER = "register"
    OWNER = "owner"


ROLES = (Role.READ, Role.RELEASE, Role.REGISTER)
"""Those that a named key may have."""


@dataclass(frozen=True)
class Holder:
    """Who calls. ``sha256``: of his named key; empty for the owner."""

    name: str
    roles: frozenset[Role]
    sha256: str = ""


OWNER = Holder("owner", frozenset(Role))


class NamedKey(BaseModel):
    """One key as the file has it. Times are UTC, ISO 8601. ``sha256``: empty once it is revoked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME.pattern)
    roles: tuple[Literal[Role.READ, Role.RELEASE, Role.REGISTER], ...]
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$", repr=False)]
    added_at: str
    revoked_at: str | None = None


class _Contents(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Literal[1] = Field(default=1, alias="schema")
    keys: tuple[NamedKey, ...] = Field(default=(), max_length=MOST_KEYS + MOST_REVOKED)


class NamedKeys:
    """The keys of one model store."""

    def __init__(self, store: Path) -> None:
        self._file = store / KEYS_FILE
        self._seen: tuple[int, ...] | None = None
        self._in_force: tuple[NamedKey, ...] = ()
        self._trouble = ""

    def listed(self) -> tuple[NamedKey, ...]:
        """Return the keys in force and those that were revoked, by name.

        Raises:
            NamedKeysError: the file cannot be read, or is not the owner's alone to write.
        """
        return tuple(sorted(self._read(), key=lambda key: key.name))

    def any_in_force(self) -> bool:
        """Return whether there is a named key. NamedKeysError."""
        return any(key.sha256 for key in self._read())

    def add(self, name: str, roles: Collection[Role]) -> str:
        """Make a key, and return it: nothing tells it again.

        Raises:
            NamedKeysError: the name is none, or has a key; there are `MOST_KEYS`; the file cannot
                be read or written.
        """
        if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
            raise NamedKeysError(f"{name!r} is no name of a key: {NAME_RULE}")
        key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        grants = tuple(role for role in ROLES if role in {*roles, Role.READ})
        with self._changing() as keys:
            if any(each.name == name and each.sha256 for each in keys):
                raise NamedKeysError(
                    f"there is a key {name} already: `vlserve keys revoke {name}` first, or take "
                    "another name"
                )
            if sum(bool(each.sha256) for each in keys) >= MOST_KEYS:
                raise NamedKeysError(
                    f"{MOST_KEYS} keys are in force, and that is the most: `vlserve keys list` "
                    "shows them, `vlserve keys revoke NAME` ends one"
                )
            keys[:] = [each for each in keys if each.name != name]
            keys.append(NamedKey(name=name, roles=grants, sha256=_sha256(key), added_at=_now()))
        return key

    def revoke(self, name: str) -> None:
        """End a key: the control service refuses it from its next request on.

        Raises:
            NamedKeysError: there is no such key in force; the file cannot be read or written.
        """
        with self._changing() as keys:
            match = next((each for each in keys if each.name == name and each.sha256), None)
            if match is None:
                names = ", ".join(sorted(each.name for each in keys if each.sha256)) or "none"
                raise NamedKeysError(f"no key {name!r} is in force (in force: {names})")
            keys.remove(match)
            old_keys = [each for each in keys if not each.sha256]
            for oldest in old_keys[: max(0, len(old_keys) - MOST_REVOKED + 1)]:
                keys.remove(oldest)
            keys.append(match.model_copy(update={"sha256": "", "revoked_at": _now()}))

    def holder_of(self, key: str) -> Holder | None:
        """Return who has a key that is in force. It takes as long for a wrong key as for a right
        one."""
        if len(key) > MAX_KEY_CHARS:
            return None
        digest, match = _sha256(key), None
        for each in self._current():
            if hmac.compare_digest(each.sha256, digest):
                match = each
        return Holder(match.name, frozenset(match.roles), match.sha256) if match else None

    def is_in_force(self, holder: Holder) -> bool:
        """Return whether the key of a holder still is; the owner's always is."""
        return holder == OWNER or any(
            (each.name, each.sha256) == (holder.name, holder.sha256) for each in self._current()
        )

    def trouble(self) -> str:
        """Return why no named key is in force though there is a file of them; else nothing."""
        self._current()
        return self._trouble

    def _current(self) -> tuple[NamedKey, ...]:
        """Return the keys in force, read anew if the file has changed; none if it is unusable."""
        identity = _identity(self._file)
        if identity != self._seen:
            try:
                self._in_force = tuple(key for key in self._read() if key.sha256)
                self._trouble = ""
                self._seen = identity
            except NamedKeysError as error:
                self._in_force, self._trouble = (), f"no named key is in force: {error}"
                passes = isinstance(error.__cause__, OSError)  # as while descriptors are short
                self._seen = None if passes else identity
        return self._in_force

    def _read(self) -> tuple[NamedKey, ...]:
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise NamedKeysError(f"{self._file} cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not _is_ours(status):
                raise NamedKeysError(
                    f"{self._file} is no file that the stack's owner alone can write: others may "
                    "have put keys into it; `chown` and `chmod 600` it if they are all yours"
                )
            text = file.read(_MOST_BYTES + 1)
        try:
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES} bytes")
            return _Contents.model_validate_json(text).keys
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, wrong["loc"])) or "the file"
            raise self._unusable(f"{place}: {wrong['msg']}") from error
        except ValueError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> NamedKeysError:
        return NamedKeysError(
            f"{self._file} cannot be used: {why}; put a backup in its place, or remove it and make "
            "the keys anew"
        )

    @contextmanager
    def _changing(self) -> Iterator[list[NamedKey]]:
        """Let the ``with`` body change the keys, one process at a time, and write them whole."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock_file = self._file.with_name(f"{KEYS_FILE}.lock")
            with open_lock(lock_file) as lock:
                if not lock_within(lock, _LOCK_S):
                    raise NamedKeysError(
                        f"{holder_of(lock_file)} changes {self._file} and does not end: end it"
                    )
                keys = list(self._read())
                yield keys
                contents = _Contents(keys=tuple(keys))
                write_private(self._file, contents.model_dump_json(by_alias=True, indent=1))
        except OSError as error:
            raise NamedKeysError(
                f"{self._file} cannot be written: {error.strerror}; to end every named key at "
                "once, remove the file"
            ) from error


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _identity(file: Path) -> tuple[int, ...] | None:
    """Return what differs once a file has other contents; None where there is none."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def _is_ours(status: os.stat_result) -> bool:
    own = status.st_uid in (os.geteuid(), 0)
    return own and stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
