"""A certificate made as docs/access.md says, and an address of this machine beyond loopback."""

import re
import shlex
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TestCertificate:
    """``certificate`` is its own authority; its names are localhost, 127.0.0.1, vlserve.example."""

    __test__ = False
    certificate: Path
    key: Path


def make_certificate(folder: Path) -> TestCertificate:
    """Run the command of docs/access.md in ``folder``."""
    text = (PROJECT / "docs" / "access.md").read_text(encoding="utf-8").replace("\\\n", " ")
    match = re.search(r"^openssl req .*$", text, re.MULTILINE)
    assert match, "docs/access.md has a command that makes a certificate"
    subprocess.run(shlex.split(match[0]), cwd=folder, check=True, capture_output=True, timeout=60)
    return TestCertificate(folder / "tls.crt", folder / "tls.key")


def other_address() -> str | None:
    """Return an IPv4 address of this machine that is not loopback; None where it has none."""
    entries = (entry for card in psutil.net_if_addrs().values() for entry in card)
    addresses = (entry.address for entry in entries if entry.family == socket.AF_INET)
    return next((address for address in addresses if not address.startswith("127.")), None)
