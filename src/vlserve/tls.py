"""TLS of the stack's own servers: their certificates, and what their own clients trust."""

import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlserve.errors import SettingsError

PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody: for servers that speak plain HTTP, because certificates take 20 ms to load."""
_END = "-----END CERTIFICATE-----"
_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class TlsFiles:
    """A server's certificate, followed by those that it follows from, and its key; both in PEM.
    ``setting``: the section that names them."""

    certificate: Path
    key: Path
    setting: str

    def refuse_unusable(self) -> None:
        """Raise SettingsError where a server could not start with these files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SettingsError(
                f"{self.setting}.tls_certificate {self.certificate} and {self.setting}.tls_key "
                f"{self.key} cannot be used: {error}; both are files in PEM, the key without a "
                "password and the certificate's own"
            ) from error


def _no_password() -> str:
    raise ValueError("the key has a password")


def trust_of(files: TlsFiles | None) -> ssl.SSLContext:
    """Return what a client on the same machine trusts of a server with these files: its very
    certificate and no other, whatever names stand in it, since it asks by loopback. SettingsError.
    """
    return PLAIN_HTTP if files is None else _pinned(files)


@cache
def _pinned(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be one of an authority
    try:
        text = files.certificate.read_text(encoding="ascii")
        first = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
        context.load_verify_locations(cadata=first)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{files.setting}.tls_certificate {files.certificate} cannot be read: {error}"
        ) from error
    return context
