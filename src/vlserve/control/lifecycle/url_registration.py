"""Registrations of archives that a caller names by an address, with a wish how to serve them."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vlserve.control.domain import Registration, State, VersionRecord
from vlserve.control.lifecycle.archive_urls import open_url
from vlserve.control.lifecycle.registration import Registrar
from vlserve.control.store.ledger import Ledger
from vlserve.control.tuning import Tuning, of_engine
from vlserve.errors import VersionConflict
from vlserve.runtime.archive import file_sha256, manifest_of
from vlserve.runtime.errors import ManifestInvalid
from vlserve.settings import Settings


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

    def register(self, url: str, wanted: WantedServing, model: str = "") -> Registration:
        """Register the archive at ``url``; a version that was retired is loaded again.

        Args:
            model: the name that the archive must have; empty: any.

        Raises:
            UrlNotAllowed, ArchiveNotFound: see `open_url`.
            VersionConflict: the version is registered already, and loaded.
            StoreUnwritable, and what `Registrar.register` raises.
        """
        control = self._settings.control
        store = self._ledger.store
        with (
            open_url(url, store, control.allowed_urls, control.max_archive_bytes) as source,
            self._registrar.room_for(source.size) as archive,
        ):
            with archive.open("wb") as file:
                file.writelines(source.chunks)
            sha256 = file_sha256(archive)
            known = self._known(archive, sha256, model)
            tuning = self._tuning(wanted, sha256, known)
            # Named, it has a retired version loaded.
            engine = known.engine if known and known.state is State.RETIRED else None
            return self._registrar.register(archive, source.name, tuning, engine)

    def _known(self, archive: Path, sha256: str, model: str) -> VersionRecord | None:
        """Return the version that these bytes are already."""
        manifest = manifest_of(archive)
        if model and model != manifest.model:
            raise ManifestInvalid(
                f"the archive's model is called {manifest.model}, not {model}: `vlserve export "
                "--name` packs it under another name"
            )
        record = self._ledger.find(manifest.model, manifest.version)
        if record is None or record.sha256 != sha256:
            return None
        if record.state.routable or record.state in (State.LOADING, State.DRAINING):
            raise VersionConflict(
                f"Model version {record.version} is already registered for model {record.model}"
            )
        return record

    def _tuning(
        self, wanted: WantedServing, sha256: str, known: VersionRecord | None
    ) -> Tuning | None:
        if not wanted.said:
            return known.tuning if known else None
        serving = of_engine(self._settings.engine)
        return Tuning(
            archive_sha256=sha256,
            serving=serving.model_validate(serving.model_dump() | wanted.said),
            tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
