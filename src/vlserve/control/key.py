"""The key of the control service: whoever reads its file may register, release and roll back.

Loopback is no identity, because every local user reaches it. The service writes a new key each
time it starts: one that another program caught, while it held the port, opens nothing afterwards.
"""

import os
import secrets
import tempfile
from pathlib import Path

_RANDOM_BYTES = 32


def renew_key(file: Path) -> str:
    """Write a new key into ``file``, which its owner alone can read, and return it.

    Where it cannot be written, as on a full disk, the key that stands there stays in force, so that
    a rollback is still possible.

    Raises:
        OSError: It cannot be written, and there is none that is the owner's alone.
    """
    key = secrets.token_urlsafe(_RANDOM_BYTES)
    try:
        write_private(file, key)
    except OSError:
        earlier_key = _private_key(file)
        if earlier_key is None:
            raise
        return earlier_key
    return key


def read_key(file: Path) -> str | None:
    """Return the key in ``file``; None where there is none. OSError where it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise OSError(f"{file} does not hold a key") from error


def write_private(file: Path, text: str) -> None:
    """Put ``text`` into ``file``, which appears whole, and its owner alone can read. OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _private_key(file: Path) -> str | None:
    try:
        status = file.lstat()
    except OSError:
        return None
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return read_key(file) if private and not file.is_symlink() else None
