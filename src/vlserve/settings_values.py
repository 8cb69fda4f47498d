"""The values that settings have: ports, seconds, addresses, lists."""

import ipaddress
import json
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

MAX_SECONDS = 7 * 24 * 3600
MAX_INT32 = 2**31 - 1
"""What TorchServe, Triton and Envoy take for a number."""
MAX_MIB = 2**24
"""16 TiB."""
MAX_KEY_FILES = 16
"""Of `trust.keys`."""

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
AllowedUrl = Annotated[str, Field(pattern=r"^(https?://[^/?#@\s]+|file://)/([^?#\s]*/)?$")]
WebhookUrl = Annotated[
    str, Field(max_length=2048, pattern=r"^https?://[A-Za-z0-9.\-_:\[\]]+(/[!-~]*)?$")
]
"""No user name in it, which a log might show."""
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
OtlpUrl = Annotated[
    str, Field(max_length=2048, pattern=r"^http://[A-Za-z0-9.\-_:\[\]]+(/[!-~]*)?$")
]
ArchiveSha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ApiKey = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$")]
"""What a header can carry."""


def with_host(url: str | None) -> str | None:
    """Return an address that has a host and a port; ValueError where it has none."""
    if url is not None and not urlsplit(url).hostname:
        raise ValueError("it names no host")
    if url is not None and urlsplit(url).port == 0:  # which raises where it is no port at all
        raise ValueError("port 0 is no port")
    return url


def listed(value: object) -> object:
    """Return the list that a variable holds: JSON, or words with commas between them. What is no
    text stays as it is."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    return tuple(word for part in value.split(",") if (word := part.strip()))


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on ``host`` is in reach of this machine alone.
    ValueError: it is no address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def refuse_half_of_tls(section: str, certificate: Path | None, key: Path | None) -> None:
    """Raise ValueError where one of the two files is named without the other."""
    if (certificate is None) != (key is None):
        missing_setting = "tls_key" if key is None else "tls_certificate"
        raise ValueError(
            f"{section}.tls_certificate and tls_key go together: set {missing_setting} too"
        )
