"""The words of a user: register, release, rollback, unload, status, history.

Loading and draining take seconds and run under the version's own operation; traffic moves under one
lock, for milliseconds, or tens of them where Envoy is to check a new cluster. So a rollback never
waits for a version to load.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.control.domain import Key, ModelRecord, State, VersionRecord
from vlserve.control.gateway.routing import full_weight
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.lifecycle import Lifecycle, Operations
from vlserve.control.rollouts.service import RolloutService
from vlserve.control.store.ledger import Ledger
from vlserve.control.transitions import rollback_target
from vlserve.control.tuning import Tuning, check_tuning
from vlserve.control.wire.views import (
    EventView,
    Health,
    ModelView,
    Registered,
    Released,
    Unloaded,
    VersionView,
)
from vlserve.errors import ArchiveError, NotReady, StillServing, VersionConflict
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.manifest import Manifest

_ARCHIVE_NAME = re.compile(r"(?P<model>.+)-(?P<version>\d+)\.mar")


class ControlService:
    """Thread-safe. Every method raises children of VlserveError."""

    def __init__(
        self,
        ledger: Ledger,
        traffic: Traffic,
        lifecycle: Lifecycle,
        operations: Operations,
        rollouts: RolloutService,
        drain_timeout_s: float,
    ) -> None:
        self._ledger = ledger
        self._traffic = traffic
        self._lifecycle = lifecycle
        self._operations = operations
        self.rollouts = rollouts
        self._drain_timeout_s = drain_timeout_s
        self.incoming = ledger.store / ".incoming"
        """Where an archive is written before it is registered."""
        shutil.rmtree(self.incoming, ignore_errors=True)  # what a crash cut short
        self.incoming.mkdir(parents=True)

    def register(self, archive: Path, name: str = "", tuning: Tuning | None = None) -> Registered:
        """Verify, keep, load and probe the archive at ``archive``, a file in `incoming`, which is
        moved. ``name``: the file's name at the user's, which must not contradict its manifest.
        ``tuning``: how it is to be served from its next load on, None: as all are. A retired
        version is loaded if there is one.

        TuningInvalid: it is another archive's; ArchiveError; VersionConflict: the number is taken
        by other bytes; LoadFailed: the version is failed, and its number free for another archive,
        because it never answered anybody.
        """
        with self._recording_refusal(name):
            return self._register(archive, name, tuning)

    def _register(self, archive: Path, name: str, tuning: Tuning | None) -> Registered:
        manifest = verify_archive(archive, called=name or "the archive")
        _check_name(name, manifest)
        if not manifest.probes:
            raise ManifestInvalid(
                f"{manifest.model} {manifest.version} holds no probes, so nothing can tell whether "
                "it answers right: pack it with `vlserve export`"
            )
        sha256 = file_sha256(archive)
        if tuning is not None:
            check_tuning(tuning, sha256)
        with self._operations.on((manifest.model, manifest.version)):
            record = self._admit(manifest, sha256)
            kept = self._keep(archive, manifest)  # also mends a file that was damaged since
            if record is None:
                record = self._ledger.add(manifest, kept, sha256, tuning)
            retuned = tuning != record.tuning
            if retuned:
                record = self._ledger.tune(*record.key, tuning)
            to_load = (*_UNFINISHED, State.RETIRED) if tuning else _UNFINISHED
            if record.state not in to_load:
                return _registered(record, already_registered=True, retuned=retuned)
            loaded = self._lifecycle.load(record)
            untuned = self._why_untuned(loaded) if tuning and not loaded.tuning else ""
            return _registered(loaded, already_registered=False, untuned=untuned)

    def _why_untuned(self, record: VersionRecord) -> str:
        events = reversed(self._ledger.events(record.model))
        said = (e.detail for e in events if e.kind == "untuned" and e.version == record.version)
        return str(next(said)["reason"])

    def release(self, model: str, version: int) -> Released:
        """All traffic of ``model`` to ``version``, in force at the gateway when this returns; the
        version before stays loaded. A retired version is loaded first."""
        with self._operations.on((model, version)):
            record = self._ledger.version(model, version)
            current = self._ledger.model(model)
            self.rollouts.refuse_if_under_way(model)
            if current.stable == version and current.weights == full_weight(version):
                return _released(model, version, self._next_earlier(current), already=True)
            self._lifecycle.make_ready(record)
            with self._traffic.change_weights(model, full_weight(version)):
                self.rollouts.refuse_if_under_way(model)
                previous = self._ledger.model(model).stable
                self._ledger.release(model, version, full_weight(version))
        return _released(model, version, previous)

    def rollback(self, model: str, version: int | None = None) -> Released:
        """All traffic back to the stable version before, or to the earlier one ``version``; in
        force when this returns. A release under way is aborted. NothingToRollBackTo, NotReady."""
        under_way = self.rollouts.under_way(model)
        if under_way is not None and version in (None, under_way.stable):
            aborted = self.rollouts.abort(model)
            return _released(model, aborted.stable, aborted.candidate)
        self.rollouts.refuse_if_under_way(model)
        if version is not None:
            self._ledger.version(model, version)
        target = rollback_target(model, self._ledger.model(model).stack, version)
        with self._operations.on((model, target)):
            self._lifecycle.make_ready(self._ledger.version(model, target))
            with self._traffic.change_weights(model, full_weight(target)):
                self.rollouts.refuse_if_under_way(model)
                current = self._ledger.model(model)
                if rollback_target(model, current.stack, version) != target:
                    raise NotReady(
                        f"traffic of {model} moved to {current.stable} meanwhile: look at "
                        f"`vlserve history {model}`, and roll back again if it is to be"
                    )
                self._ledger.roll_back(model, target, full_weight(target))
        return _released(model, target, current.stable)

    def unload(self, model: str, version: int) -> Unloaded:
        """Close the version's path, wait for its requests, take it out of the engine; its archive
        stays. StillServing while it has weight."""
        with self._operations.on((model, version)):
            record = self._ledger.version(model, version)
            under_way = self.rollouts.under_way(model)
            if under_way is not None and version in (under_way.candidate, under_way.stable):
                self.rollouts.refuse_if_under_way(model)
            if self._ledger.model(model).weights.get(version):
                raise StillServing(
                    f"{model} {version} has traffic: release another version or roll back first"
                )
            if record.state is State.READY:
                record = self._lifecycle.start_draining(record)
            if record.state is State.DRAINING:
                record = self._lifecycle.finish_draining(record, self._drain_timeout_s)
        return Unloaded(model=model, version=version, state=record.state)

    def models(self) -> list[ModelView]:
        return [self._model_view(record) for record in self._ledger.models()]

    def model(self, model: str) -> ModelView:
        return self._model_view(self._ledger.model(model))

    def history(self, model: str) -> list[EventView]:
        """Everything that happened to a model, oldest first."""
        return [
            EventView(
                at=event.at,
                model=event.model,
                version=event.version,
                kind=event.kind,
                detail=event.detail,
            )
            for event in self._ledger.events(model)
        ]

    def health(self) -> Health:
        engine, gateway = tuple(sorted(self._traffic.held)), self._traffic.is_as_wanted()
        lacking = frozenset[Key]().union(*(each.lacks for each in self._traffic.instances))
        restoring = tuple(f"{model} {version}" for model, version in sorted(lacking))
        troubles = {
            "no engine instance answers": not engine,
            "the gateway does not serve the routing that is wanted": not gateway,
            f"being loaded again: {', '.join(restoring)}": bool(restoring),
        }
        return Health(
            status="; ".join(trouble for trouble, is_so in troubles.items() if is_so) or "ok",
            engine_instances=engine,
            gateway_ready=gateway,
            restoring=restoring,
        )

    @contextmanager
    def _recording_refusal(self, name: str) -> Iterator[None]:
        """What is refused before it is a version is an event of the model that its file names."""
        try:
            yield
        except (ArchiveError, VersionConflict) as error:
            named = _ARCHIVE_NAME.fullmatch(name)
            if named and named["model"] in [known.model for known in self._ledger.models()]:
                detail = {"archive": name, "reason": str(error)}
                self._ledger.record(named["model"], None, "refused", **detail)
            raise

    def _admit(self, manifest: Manifest, sha256: str) -> VersionRecord | None:
        """The version if these bytes are there already, None if the number is free."""
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
            if other.was_ready and other.manifest.task != manifest.task:
                raise VersionConflict(
                    f"{model} answers task {other.manifest.task}, this archive task "
                    f"{manifest.task}: its clients could not read the answers; give it another name"
                )
        return None

    def _keep(self, archive: Path, manifest: Manifest) -> Path:
        model, version = manifest.model, manifest.version
        folder = self._ledger.store / model / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"{model}-{version}.mar"
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        archive.replace(kept)
        for changed in (folder, folder.parent, self._ledger.store):
            _sync_folder(changed)
        return kept

    def _next_earlier(self, record: ModelRecord) -> int | None:
        earlier = _earlier(record)
        return earlier[0] if earlier else None

    def _model_view(self, record: ModelRecord) -> ModelView:
        held = self._traffic.held
        return ModelView(
            model=record.model,
            stable=record.stable,
            earlier=_earlier(record),
            weights=record.weights,
            versions=tuple(
                VersionView(
                    model=version.model,
                    version=version.version,
                    state=version.state,
                    weight=record.weights.get(version.version, 0),
                    reason=version.reason,
                    task=version.manifest.task,
                    family=version.manifest.family,
                    precision=version.manifest.precision,
                    sha256=version.sha256,
                    registered_at=version.registered_at,
                    changed_at=version.changed_at,
                    tuning=version.tuning,
                    workers_ready={
                        name: holds[version.key].workers_ready
                        for name, holds in held.items()
                        if version.key in holds
                    },
                )
                for version in self._ledger.versions(record.model)
            ),
        )


_UNFINISHED = (State.REGISTERED, State.LOADING, State.FAILED)


def _sync_folder(folder: Path) -> None:
    """The names in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_name(name: str, manifest: Manifest) -> None:
    named = _ARCHIVE_NAME.fullmatch(name)
    said = (manifest.model, str(manifest.version))
    if named and (named["model"], named["version"]) != said:
        raise ManifestInvalid(
            f"{name} is {manifest.model} {manifest.version} by its manifest: "
            "rename the file, or export the archive again"
        )


def _earlier(record: ModelRecord) -> tuple[int, ...]:
    return tuple(version for version in reversed(record.stack[:-1]) if version != record.stable)


def _registered(
    record: VersionRecord, already_registered: bool, retuned: bool = False, untuned: str = ""
) -> Registered:
    return Registered(
        model=record.model,
        version=record.version,
        state=record.state,
        already_registered=already_registered,
        retuned=retuned,
        untuned=untuned,
    )


def _released(model: str, version: int, previous: int | None, already: bool = False) -> Released:
    return Released(model=model, version=version, previous=previous, already_released=already)
