"""Whether an archive is trusted: its signature against today's keys of `trust.keys`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vlserve.control.domain import Signer, VersionRecord
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.store.ledger import Ledger
from vlserve.errors import (
    KeyUnusable,
    ModelNotFound,
    SignatureMissing,
    SignatureRefused,
    SignatureUnknownKey,
)
from vlserve.settings_sections import TrustSettings
from vlserve.signing.beside import SignatureFiles, read_beside, signature_file
from vlserve.signing.bundle import Bundle, read_bundle
from vlserve.signing.keys import PublicKey, public_key, read_public_keys
from vlserve.signing.statements import check_provenance_subject, check_signature_subject

logger = logging.getLogger(__name__)


def signer_of_new(
    settings: TrustSettings, sha256: str, files: SignatureFiles | None, what: str
) -> Signer | None:
    """Return who signed an archive that serves nowhere yet; None where no trusted key did and it
    may be loaded all the same.

    Args:
        files: what lies beside the archive.

    Raises:
        SignatureMissing, SignatureUnknownKey: the mode is enforce.
        SignatureMismatch, SignatureUnreadable: it is signed wrong; in any mode where it shows
            without a key, and else unless the mode is off.
    """
    if settings.mode == "off":
        if files is not None:
            _on_these_bytes(files, sha256, what)
        return None
    try:
        return _verified(files, sha256, _keys(settings), what)
    except (SignatureMissing, SignatureUnknownKey) as error:
        if settings.mode == "enforce":
            raise
        logger.warning("%s", error)
        return None


class Trust:
    """Thread-safe. Key files are read anew for each check, so that a key is revoked by taking it
    out of its file."""

    def __init__(self, settings: TrustSettings, ledger: Ledger, traffic: Traffic) -> None:
        self._settings = settings
        self._ledger = ledger
        self._traffic = traffic

    def check(
        self, model: str, version: int, sha256: str, files: SignatureFiles | None
    ) -> Signer | None:
        """Return who signed the archive with these bytes; None where no trusted key did and it may
        be loaded all the same.

        What has weight, or is gone back to, is loaded again whatever became of its signer's key: a
        revocation takes nothing down that serves. It must be what that key signed, though.

        Args:
            files: what is kept, or sent, beside the archive.

        Raises:
            SignatureMissing, SignatureUnknownKey: the mode is enforce, and it does not serve.
            SignatureMismatch, SignatureUnreadable: it is signed wrong; in any mode where it shows
                without a key, and else unless the mode is off.
        """
        what = f"{model} {version}"
        record = self._ledger.find(model, version)
        before = record.signer if record is not None and record.sha256 == sha256 else None
        if self._settings.mode == "off":
            if files is not None:
                _on_these_bytes(files, sha256, what)
            return before
        enforced = self._settings.mode == "enforce" and not self.serves(model, version)
        try:
            return _verified(files, sha256, self.keys(), what)
        except SignatureMissing as error:
            if enforced:
                raise
            logger.warning("%s", error)
            return before
        except SignatureUnknownKey as error:
            if enforced:
                raise
            logger.warning("%s", error)
            return self._signed_before(files, sha256, before, what)

    def _signed_before(
        self, files: SignatureFiles | None, sha256: str, before: Signer | None, what: str
    ) -> Signer | None:
        """Return who signed a version that serves, by the key that was trusted when he did."""
        if before is None:
            return None
        key = public_key(before.pem.encode(), before.name, f"the ledger, as {before.name},")
        try:
            return _verified(files, sha256, [key], what)
        except SignatureUnknownKey:
            if self._settings.mode == "enforce":
                raise
            return None

    def objection(self, record: VersionRecord) -> str:
        """Return why a loaded version may get no traffic that it has not yet; empty if it may."""
        if self._settings.mode != "enforce" or self.serves(*record.key):
            return ""
        keys = _keys(self._settings, logging.DEBUG)  # a rollout asks each second
        if record.signer is not None and record.signer.hint in {key.hint for key in keys}:
            return ""
        try:
            files = read_beside(record.archive)
            _verified(files, record.sha256, keys, f"{record.model} {record.version}")
        except SignatureRefused as error:
            return str(error)
        return ""

    def serves(self, model: str, version: int) -> bool:
        """Return whether a version has weight, or can be gone back to."""
        try:
            in_force = self._traffic.model(model)
        except ModelNotFound:
            return False
        return bool(in_force.weights.get(version)) or version in in_force.stack

    def keys(self) -> list[PublicKey]:
        """Return the keys that are trusted now, as far as their files can be read."""
        return _keys(self._settings)

    def warnings(self) -> Iterator[str]:
        """Yield what is not as `trust` asks for and yet serves, kept signatures that are lost, and
        key files that cannot be read."""
        if self._settings.mode == "off":
            return
        hints: set[str] = set()
        for file in self._settings.keys:
            try:
                hints |= {key.hint for key in read_public_keys(file)}
            except KeyUnusable as error:
                yield f"trust.keys: {error}: what its keys signed is not trusted"
        for record in self._ledger.versions():
            if record.state.loaded:
                yield from _doubts(record, hints)


def _doubts(record: VersionRecord, hints: set[str]) -> Iterator[str]:
    what = f"{record.model} {record.version}"
    todo = "sign the archive with one of trust.keys, and `vlserve register` it again"
    if record.signer is None:
        yield f"{what} is loaded, and no key of trust.keys is known to have signed it: {todo}"
    elif record.signer.hint not in hints:
        yield (
            f"{what} was signed by {record.signer}, which is not in trust.keys any more: it is "
            f"loaded again while it has weight or can be gone back to; {todo}"
        )
    elif loss := _loss(record, what):
        yield loss


def _loss(record: VersionRecord, what: str) -> str:
    """Return what has become of the kept signature of a signed version; empty if it is whole."""
    todo = f"`vlserve register` of the same {record.archive.name} with its signature puts it back"
    try:
        files = read_beside(record.archive)
        if files is None:
            return (
                f"{signature_file(record.archive)} is gone: after a restart of the engine {what} "
                f"is loaded again only while it has weight or can be gone back to; {todo}"
            )
        _on_these_bytes(files, record.sha256, what)
    except SignatureRefused as error:
        return f"{error}: {what} serves until the engine restarts; {todo}"
    return ""


def _keys(settings: TrustSettings, level: int = logging.WARNING) -> list[PublicKey]:
    """Return the keys of files that can be read, and log at ``level`` which cannot."""
    keys: list[PublicKey] = []
    for file in settings.keys:
        try:
            keys += read_public_keys(file)
        except KeyUnusable as error:
            logger.log(level, "trust.keys: %s", error)
    return keys


def _verified(
    files: SignatureFiles | None, sha256: str, keys: Sequence[PublicKey], what: str
) -> Signer:
    if files is None:
        raise SignatureMissing(
            f"{what} has no signature: `vlserve sign` its archive with one of trust.keys, and "
            "`vlserve register` it"
        )
    signature, provenance = _on_these_bytes(files, sha256, what)
    if provenance is not None:
        _signer(provenance, keys, f"the provenance of {what}")
    key = _signer(signature, keys, f"the signature of {what}")
    return Signer(key.name, key.hint, key.pem)


def _on_these_bytes(files: SignatureFiles, sha256: str, what: str) -> tuple[Bundle, Bundle | None]:
    """Return signature and provenance, once both say that they are on these bytes."""
    with _named(f"the signature of {what}"):
        signature = read_bundle(files.signature)
        check_signature_subject(signature, sha256)
    if not files.provenance:
        return signature, None
    with _named(f"the provenance of {what}"):
        provenance = read_bundle(files.provenance)
        check_provenance_subject(provenance, sha256)
    return signature, provenance


def _signer(bundle: Bundle, keys: Sequence[PublicKey], what: str) -> PublicKey:
    with _named(what):
        return bundle.signer(keys)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of what an error is."""
    try:
        yield
    except SignatureRefused as error:
        raise type(error)(f"{what} {error}") from error
