"""A server's binary that a third party publishes is used only with a known hash."""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from vlserve.errors import StackError


def verified_binary(path: Path, name: str, sha256: Mapping[str, str], reinstall: str) -> Path:
    """Return ``path``, once the sha256 of the file is the packaged one.

    Args:
        name: of the server, for messages.
        sha256: of its binary, by machine.
        reinstall: the command that brings the right one.

    Raises:
        StackError: The binary is missing, is another one, or is of a machine without a known hash.
    """
    expected = sha256.get(platform.machine())
    if expected is None:
        raise StackError(
            f"no sha256 of {name} is known for {platform.machine()}: it runs on "
            f"Linux on {' and '.join(sha256)}"
        )
    if not path.is_file():
        raise StackError(f"{path} does not exist: {reinstall}")
    with path.open("rb") as binary:
        actual = hashlib.file_digest(binary, "sha256").hexdigest()
    if actual != expected:
        raise StackError(
            f"{path} is not the {name} that this version was built for (sha256 {actual}, "
            f"expected {expected}): {reinstall}"
        )
    return path
