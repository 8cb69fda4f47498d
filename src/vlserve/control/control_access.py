"""How a client of the control service gets in: by the owner's file on the machine of the stack, or
by an address and a named key that variables of the environment name, from any machine."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from vlserve.control.key import read_key
from vlserve.control.named_keys import MAX_KEY_CHARS
from vlserve.errors import SettingsError, StackDown, Unauthorized
from vlserve.settings_values import is_loopback

URL = "VLSERVE_CONTROL_URL"
KEY = "VLSERVE_CONTROL_KEY"
KEY_FILE = "VLSERVE_CONTROL_KEY_FILE"
CA = "VLSERVE_CONTROL_CA"
_MOST_BYTES = 4096
"""Of a file with a key."""


@dataclass(frozen=True)
class OwnersKey:
    """The key in ``file``, which is read at each request: the service writes a new one at each
    start."""

    file: Path

    def read(self) -> str | None:
        """Return the key; None where there is none. Unauthorized: it is another user's."""
        try:
            return read_key(self.file)
        except PermissionError as error:
            raise Unauthorized(
                f"{self.file} is not yours to read: ask as the user who started the stack"
            ) from error

    def refused(self, service: str) -> Unauthorized:
        """Return the error of a service that does not take the key."""
        has = "does not take the key in" if self.file.exists() else "asks for a key, and no"
        end = "" if self.file.exists() else " is there"
        return Unauthorized(
            f"{service} {has} {self.file}{end}: it is the one of another folder or another user; "
            "set VLSERVE_PROJECT_DIR or VLSERVE_STATE_DIR to those of the stack that is up"
        )

    def down(self, what: str) -> StackDown:
        """Return the error of a service of which ``what`` says that it is not there."""
        return StackDown(f"{what}: start it with `vlserve up`")

    def hangs(self, what: str) -> StackDown:
        """Return the error of a service of which ``what`` says that it hangs."""
        return StackDown(f"{what}; `vlserve up` starts it anew")


@dataclass(frozen=True)
class RemoteAccess:
    """A control service at ``url``, and the named key that it takes. ``ca_file``: certificates
    that its own must follow from; None: those that this machine trusts."""

    url: str
    key: str = field(repr=False)
    ca_file: Path | None = None

    def read(self) -> str | None:
        """Return the key."""
        return self.key

    def refused(self, service: str) -> Unauthorized:
        """Return the error of a service that does not take the key."""
        return Unauthorized(
            f"{service} does not take the key of {KEY} or {KEY_FILE}: it was revoked, or is "
            "another stack's; `vlserve keys list` on the machine of the stack shows those in force"
        )

    def down(self, what: str) -> StackDown:
        """Return the error of a service of which ``what`` says that it is not there."""
        return StackDown(
            f"{what}: {URL} names it; `vlserve status` on its own machine tells more. The way back "
            "without it, `vlserve rollback` or `abort`, is on that machine alone"
        )

    hangs = down

    def trust(self) -> ssl.SSLContext:
        """Return what certificates the client trusts. SettingsError."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise SettingsError(
                f"{CA}: {self.ca_file} cannot be read as certificates in PEM: {error}"
            ) from error


def remote_access(variables: Mapping[str, str] = os.environ) -> RemoteAccess | None:
    """Return the control service that the variables name; None where they name none, and the one
    of this machine's project is meant.

    Raises:
        SettingsError: they cannot work.
    """
    url, key, file = (variables.get(name, "") for name in (URL, KEY, KEY_FILE))
    if not url:
        if key or file:
            name = KEY if key else KEY_FILE
            raise SettingsError(f"{name} is set, and {URL} is not: which service is it for?")
        return None
    _refuse_bad_url(url)
    if bool(key) == bool(file):
        raise SettingsError(
            f"{URL} is set, so set one of {KEY}, to a key that `vlserve keys add` printed, and "
            f"{KEY_FILE}, to a file that holds it"
        )
    secret = key.strip() or _key_in(Path(file))
    if not secret.isascii() or not secret.isprintable() or len(secret) > MAX_KEY_CHARS:
        raise SettingsError(f"{KEY if key else KEY_FILE} holds no key that `vlserve keys add` made")
    ca = variables.get(CA, "")
    return RemoteAccess(url.rstrip("/"), secret, Path(ca) if ca else None)


def _key_in(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it holds no key"
        raise SettingsError(f"{KEY_FILE}: {file} cannot be read: {why}") from error
    if not text:
        raise SettingsError(f"{KEY_FILE}: {file} is empty")
    return text


def _refuse_bad_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{URL} {url!r} is no address: {error}") from error
    beside = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or beside or port == 0:
        raise SettingsError(f"{URL} must be like https://vlserve.example:8090, not {_bare(parts)}")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise SettingsError(
            f"{URL} {url} would carry the key in clear text over the network: use https:// "
            "(docs/access.md), or a tunnel to loopback"
        )


def _bare(parts: SplitResult) -> str:
    """Return an address without what may be a password in it."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_loopback(host: str) -> bool:
    try:
        return is_loopback(host)
    except ValueError:  # another name
        return False
