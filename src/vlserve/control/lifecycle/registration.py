"""The registration of an archive: verify it, keep it in the model store, load and probe it."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from vlserve.control import caller
from vlserve.control.domain import EngineKind, Signer, State, VersionRecord
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.lifecycle.trust import Trust
from vlserve.control.named_keys import OWNER
from vlserve.control.outcomes import Registration
from vlserve.control.placement import Placement
from vlserve.control.store.disk_space import free_space, has_room
from vlserve.control.store.ledger import Ledger
from vlserve.control.tuning import Tuning, check_tuning
from vlserve.errors import (
    ArchiveError,
    ControlError,
    OnAnotherEngine,
    SignatureRefused,
    StoreUnwritable,
    VersionConflict,
)
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.manifest import Manifest
from vlserve.signing.beside import SignatureFiles, read_beside, remove_beside, write_beside

_ARCHIVE_NAME = re.compile(r"(?P<model>.+)-(?P<version>\d+)\.mar")
_UNFINISHED = (State.REGISTERED, State.LOADING, State.FAILED, State.DELETED)


def servable(archive: Path, name: str = "") -> Manifest:
    """Verify an archive that is to be served, and return its manifest.

    Args:
        name: the file's name at the user's, which must not contradict its manifest.

    Raises:
        ArchiveError: the archive cannot be used.
    """
    manifest = verify_archive(archive, called=name or "the archive")
    _check_name(name, manifest)
    if not manifest.probes:
        raise ManifestInvalid(
            f"{manifest.model} {manifest.version} holds no probes, so nothing can tell whether "
            "it answers right: pack it with `vlserve export`"
        )
    return manifest


class Registrar:
    """Makes versions of archives. Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        lifecycle: Lifecycle,
        operations: Operations,
        placement: Placement,
        trust: Trust,
    ) -> None:
        self._ledger = ledger
        self._placement = placement
        self._trust = trust
        self._lifecycle = lifecycle
        self._operations = operations
        self.incoming = ledger.store / ".incoming"
        """Where an archive is written before it is registered."""
        shutil.rmtree(self.incoming, ignore_errors=True)  # what a crash cut short
        with suppress(OSError):  # a store that takes no archive may have to go back
            self.incoming.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def room_for(self, size: int) -> Iterator[Path]:
        """Yield a name in `incoming` for an archive of ``size`` bytes, whose file goes afterwards.

        Raises:
            StoreUnwritable: it does not fit beside what must stay free, or cannot be written.
        """
        archive = self.incoming / f"{uuid4().hex}.mar"
        with self._as_unwritable():
            self.incoming.mkdir(parents=True, exist_ok=True)
            if not has_room(self.incoming, size):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                yield archive
            finally:
                archive.unlink(missing_ok=True)

    @contextmanager
    def _as_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            store = self._ledger.store
            raise StoreUnwritable(
                f"the model store {store} cannot take the archive: {error.strerror} "
                f"({free_space(store)}): free some space there, or make it writable"
            ) from error

    def register(
        self,
        archive: Path,
        name: str = "",
        tuning: Tuning | None = None,
        engine: EngineKind | None = None,
        files: SignatureFiles | None = None,
    ) -> Registration:
        """Register the archive at ``archive``, a file in `incoming`, which is moved.

        Args:
            name: the file's name at the user's, which must not contradict its manifest.
            tuning: how it is to be served from its next load on; None: as the engine's settings
                say. A retired version is loaded if there is one.
            engine: which engine is to run it; a retired version is loaded there. None: as before;
                a new version gets the stack's own, and TorchServe where the stack runs both.
            files: its signature and provenance, which are kept beside it; None: those that are kept
                with the same archive count.

        Raises:
            EngineNotRun: the stack runs no such engine.
            OnAnotherEngine: the version is loaded, and another engine runs it.
            TuningInvalid: the tuning is another archive's.
            ArchiveError: the archive cannot be used.
            SignatureRefused: its signature is wrong, or not one that is asked for.
            VersionConflict: the number is taken by other bytes.
            LoadFailed: the version is failed, and its number free for another archive, because it
                never answered anybody.
        """
        self._placement.refuse_unknown(engine)
        with self._recording_refusal(name):
            return self._register(archive, name, tuning, engine, files)

    def _register(
        self,
        archive: Path,
        name: str,
        tuning: Tuning | None,
        engine: EngineKind | None,
        files: SignatureFiles | None,
    ) -> Registration:
        manifest = servable(archive, name)
        sha256 = file_sha256(archive)
        if tuning is not None:
            check_tuning(tuning, sha256)
        caller.refuse_if_gone(f"{manifest.model} {manifest.version} was not registered")
        with self._operations.on((manifest.model, manifest.version)):
            record = self._admit(manifest, sha256)
            if record is not None and engine is not None:
                self._refuse_to_move(record, engine)
            files = files or self._kept_beside(record)
            signer = self._trust.check(manifest.model, manifest.version, sha256, files)
            with self._as_unwritable():
                path = self._keep(archive, manifest, files)  # also mends what was damaged since
            if record is None:
                record = self._add(manifest, path, sha256, tuning, engine, signer)
            elif signer != record.signer:
                record = self._ledger.sign(*record.key, signer)
            if engine is not None and engine != record.engine:
                record = self._ledger.assign(*record.key, engine)
            retuned = tuning != record.tuning
            if retuned:
                record = self._ledger.tune(*record.key, tuning)
            if self._lifecycle.lacks(record):
                self._lifecycle.restore(record)
                return self._outcome(record, retuned=retuned, restored=True)
            to_load = (*_UNFINISHED, State.RETIRED) if tuning or engine else _UNFINISHED
            if record.state not in to_load:
                return self._outcome(record, retuned=retuned)
            record = self._lifecycle.load(record)
            reason = self._why_untuned(record) if tuning and not record.tuning else ""
            return self._outcome(record, already_registered=False, untuned=reason)

    def _refuse_to_move(self, record: VersionRecord, engine: EngineKind) -> None:
        runs_on = self._placement.engine_of(record)
        if engine != runs_on and (record.state.routable or record.state is State.DRAINING):
            model, version = record.key
            raise OnAnotherEngine(
                f"{model} {version} is {record.state} on {runs_on}: give its traffic to another "
                f"version, `vlserve unload {model} {version}`, then register it for {engine}"
            )

    def _add(
        self,
        manifest: Manifest,
        path: Path,
        sha256: str,
        tuning: Tuning | None,
        engine: EngineKind | None,
        signer: Signer | None,
    ) -> VersionRecord:
        try:
            return self._ledger.add(
                manifest,
                path,
                sha256,
                tuning,
                engine or self._placement.default,
                by=_who_registers(),
                signer=signer,
            )
        except ControlError:
            path.unlink(missing_ok=True)  # no ledger knows it
            remove_beside(path)
            raise

    def _why_untuned(self, record: VersionRecord) -> str:
        events = reversed(self._ledger.events(record.model))
        details = (e.detail for e in events if e.kind == "untuned" and e.version == record.version)
        return str(next(details)["reason"])

    def _outcome(
        self,
        record: VersionRecord,
        already_registered: bool = True,
        retuned: bool = False,
        untuned: str = "",
        restored: bool = False,
    ) -> Registration:
        return Registration(
            model=record.model,
            version=record.version,
            state=record.state,
            already_registered=already_registered,
            retuned=retuned,
            untuned=untuned,
            restored=restored,
            engine=self._placement.engine_of(record),
            signer=record.signer,
        )

    @contextmanager
    def _recording_refusal(self, name: str) -> Iterator[None]:
        """Record what is refused before it is a version, with the model that its file names."""
        try:
            yield
        except (ArchiveError, VersionConflict, SignatureRefused) as error:
            match = _ARCHIVE_NAME.fullmatch(name)
            if match and match["model"] in [record.model for record in self._ledger.models()]:
                detail = {"archive": name, "reason": str(error)}
                self._ledger.record(match["model"], None, "refused", **detail)
            raise

    def _admit(self, manifest: Manifest, sha256: str) -> VersionRecord | None:
        """Return the version if these bytes are there already, None if the number is free."""
        model, version = manifest.model, manifest.version
        record = self._ledger.find(model, version)
        if record is not None and record.sha256 == sha256:
            return record
        if record is not None and record.state is not State.FAILED:
            raise VersionConflict(
                f"{model} {version} is registered from other bytes (sha256 {record.sha256[:12]}…, "
                f"these have {sha256[:12]}…): versions never change, so export under a new number"
            )
        for other in self._ledger.versions(model):
            adopts = manifest.adopted or other.manifest.adopted  # the handler's answers are its own
            if other.was_ready and other.manifest.task != manifest.task and not adopts:
                raise VersionConflict(
                    f"{model} answers task {other.manifest.task}, this archive task "
                    f"{manifest.task}: its clients could not read the answers; give it another name"
                )
        return None

    def _kept_beside(self, record: VersionRecord | None) -> SignatureFiles | None:
        """Return what is kept beside the archive of a version; None of a new one."""
        return None if record is None else read_beside(record.archive)

    def _keep(self, archive: Path, manifest: Manifest, files: SignatureFiles | None) -> Path:
        """Move the archive into the model store, with its signature, and return its path there."""
        model, version = manifest.model, manifest.version
        folder = self._ledger.store / model / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{model}-{version}.mar"
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        archive.replace(target)
        if files is None:
            remove_beside(target)  # of a failed archive that had this number
        else:
            write_beside(target, files)
        for directory in (folder, folder.parent, self._ledger.store):
            _sync_folder(directory)
        return target


def _who_registers() -> str:
    """Return the name of the caller's key; of the owner, who has no name by that, what he says."""
    return caller.name() if caller.key() in ("", OWNER.name) else caller.key()


def _sync_folder(folder: Path) -> None:
    """Make the names in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_name(name: str, manifest: Manifest) -> None:
    match = _ARCHIVE_NAME.fullmatch(name)
    expected = (manifest.model, str(manifest.version))
    if match and (match["model"], match["version"]) != expected:
        raise ManifestInvalid(
            f"{name} is {manifest.model} {manifest.version} by its manifest: "
            "rename the file, or export the archive again"
        )
