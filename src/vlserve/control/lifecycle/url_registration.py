"""Registrations of archives that a caller names by an address, with a wish how to serve them."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from vlserve.control.domain import State, VersionRecord
from vlserve.control.engine.adopted_settings import settings_with
from vlserve.control.lifecycle.archive_urls import open_url, signature_at
from vlserve.control.lifecycle.registration import Registrar
from vlserve.control.outcomes import Registration
from vlserve.control.store.ledger import Ledger
from vlserve.control.tuning import Tuning, of_engine
from vlserve.errors import SignatureMissing, VersionConflict
from vlserve.runtime.archive import file_sha256, manifest_of
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.manifest import Adopted, Manifest
from vlserve.settings import Settings
from vlserve.signing.beside import SIGNATURE_SUFFIX, SignatureFiles


@dataclass(frozen=True)
class WantedServing:
    """How a caller wants a version to be served; None: as the engine's settings say."""

    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None

    @property
    def said(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class UrlRegistrar:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, registrar: Registrar, settings: Settings) -> None:
        self._ledger = ledger
        self._registrar = registrar
        self._settings = settings

    def register(self, url: str, wishes: WantedServing, model: str = "") -> Registration:
        """Register the archive at ``url``, by the signature beside it where `trust` asks for one;
        a version that was retired is loaded again.

        Args:
            model: the name that the archive must have; empty: any.

        Raises:
            UrlNotAllowed, ArchiveNotFound: see `open_url`, `signature_at`.
            VersionConflict: the version is registered already, and loaded.
            StoreUnwritable, and what `Registrar.register` raises.
        """
        control = self._settings.control
        store = self._ledger.store
        with ExitStack() as room:
            with open_url(url, store, control.allowed_urls, control.max_archive_bytes) as source:
                archive = room.enter_context(self._registrar.room_for(source.size))
                with archive.open("wb") as file:
                    file.writelines(source.chunks)
            sha256, manifest = file_sha256(archive), manifest_of(archive)
            _refuse_other_name(manifest, model)
            record = self._known(manifest, sha256)
            tuning = record.tuning if record else None
            if wishes.said:
                tuning = self._tuning(wishes, sha256, manifest.adopted)
            # Named, it has a retired version loaded.
            engine = record.engine if record and record.state is State.RETIRED else None
            files = self._signature(url)
            try:
                return self._registrar.register(archive, source.name, tuning, engine, files)
            except SignatureMissing as error:
                raise SignatureMissing(
                    f"{error}, or put what `vlserve sign` wrote beside it to {url}"
                    f"{SIGNATURE_SUFFIX}, where nothing is"
                ) from error

    def _signature(self, url: str) -> SignatureFiles | None:
        """Return what lies beside the archive; of no use, and not asked for, while trust is off."""
        if self._settings.trust.mode == "off":
            return None
        return signature_at(url, self._ledger.store, self._settings.control.allowed_urls)

    def _known(self, manifest: Manifest, sha256: str) -> VersionRecord | None:
        """Return the version that these bytes are already."""
        record = self._ledger.find(manifest.model, manifest.version)
        if record is None or record.sha256 != sha256:
            return None
        if record.state.routable or record.state in (State.LOADING, State.DRAINING):
            raise VersionConflict(
                f"Model version {record.version} is already registered for model {record.model}"
            )
        return record

    def _tuning(self, wishes: WantedServing, sha256: str, origin: Adopted | None) -> Tuning:
        """Return what a caller wants, and of the rest what holds without a wish."""
        serving = of_engine(settings_with(self._settings.engine, None, origin))
        return Tuning(
            archive_sha256=sha256,
            serving=serving.model_validate(serving.model_dump() | wishes.said),
            tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _refuse_other_name(manifest: Manifest, model: str) -> None:
    """Raise ManifestInvalid where a caller names another model than the archive's."""
    names = {manifest.model, *([manifest.adopted.name] if manifest.adopted else [])}
    if model and model not in names:
        raise ManifestInvalid(
            f"the archive's model is called {manifest.model}, not {model}: `vlserve export --name` "
            "and `vlserve adopt --name` pack it under another name"
        )
