"""The steps of one version's life: load, probe, warm up, restore, drain. Users and the reconcile
tick share them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlserve.control import caller
from vlserve.control.domain import Instance, Key, State, VersionRecord
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.lifecycle.archive_bytes import ArchiveBytes
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.lifecycle.idle import is_idle
from vlserve.control.lifecycle.probes import (
    failed_probes,
    refuse_wrong_answers,
    serves_somewhere,
)
from vlserve.control.lifecycle.trust import Trust
from vlserve.control.lifecycle.warm_up import warm_up
from vlserve.control.ports import Engine
from vlserve.control.store.ledger import Ledger
from vlserve.errors import (
    CallerGone,
    ControlError,
    LedgerUnwritable,
    LoadFailed,
    NotReady,
)
from vlserve.signing.beside import read_beside

_POLL_S = 0.1


class Lifecycle:
    """Callers hold the version's operation. Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        traffic: Traffic,
        backoff: Backoff,
        trust: Trust,
        archives: ArchiveBytes,
        drain_timeout_s: float,
    ) -> None:
        self._backoff = backoff
        self._trust = trust
        self._archives = archives
        self._ledger = ledger
        self._engine = engine
        self._traffic = traffic
        self._drain_timeout_s = drain_timeout_s

    def load(self, record: VersionRecord) -> VersionRecord:
        """Load and probe a version that the engine does not hold, and open its path.

        A version that cannot be loaded as tuned is loaded without its tuning, which is dropped.

        Raises:
            LoadFailed: it cannot be loaded, or answers its probes wrong. It is out of the engine,
                and failed (or retired, where it was ready before).
            CallerGone: likewise, because nobody waits for it any more.
            EngineUnavailable: it stays loading; reconcile goes on once the engine answers.
        """
        model, version = record.key
        if record.state is State.REGISTERED:  # what a failed archive of this number left is not it
            self._engine.unload(model, version)
        if record.state is not State.LOADING:
            record = self._ledger.move(model, version, State.LOADING, "loading")
        try:
            self._load_and_probe(record)
            self._warm_up(record)
        except LoadFailed as error:
            with suppress(ControlError):  # what is left there goes at a tick
                self._engine.unload(model, version)
            state = State.RETIRED if record.was_ready else State.FAILED
            self._ledger.move(model, version, state, "failed", reason=str(error))
            raise
        with self._traffic.change_routing():
            where = self._where(record)
            return self._ledger.move(model, version, State.READY, "loaded", **where)

    def restore(self, record: VersionRecord) -> None:
        """Load a version again on the instances that lack it. Its state and its weight stay.

        As in `load`, a tuning that does not work is dropped.

        Raises:
            LoadFailed: it cannot be loaded, or answers its probes wrong.
            EngineUnavailable: no instance answers.
        """
        self._load_and_probe(record)
        self._backoff.succeeded(record.key)
        with suppress(LedgerUnwritable):  # it serves, whoever writes that down
            self._ledger.record(*record.key, "recovered", **self._where(record))

    def lacks(self, record: VersionRecord) -> bool:
        """Return whether an instance is to get a version back that clients may ask for."""
        return record.state.routable and any(
            record.key in instance.lacks for instance in self._traffic.instances
        )

    def make_ready(self, record: VersionRecord) -> None:
        """Make sure that a version is loaded, trusted and healthy now; a retired one is loaded
        first.

        Raises:
            NotReady: it cannot get traffic; the message says why.
            SignatureRefused: its signature is not trusted any more, and it does not serve yet.
        """
        if record.state.routable:
            self._check_signature(record)
            self.check_healthy(record)
            return
        if record.state is State.DRAINING:
            record = self.finish_draining(record, self._drain_timeout_s)
        if record.state is State.DELETED:
            raise NotReady(
                f"{record.model} {record.version} is deleted, so it gets no traffic: `vlserve "
                f"register` of the same {record.archive.name} puts it back"
            )
        if record.state is not State.RETIRED:
            reason = f" ({record.reason})" if record.reason else ""
            raise NotReady(
                f"{record.model} {record.version} is {record.state}{reason}, so it gets no traffic"
            )
        self.load(record)

    def check_way_back(self, record: VersionRecord) -> None:
        """Make sure that a loaded version can be gone back to: an instance answers its first probe
        right, and none answers it wrong. One that says nothing is not waited for.

        Raises:
            NotReady: none answers right, or one answers wrong.
        """
        instances = self._on_its_engine(record, self._traffic.instances)
        holders = [each for each in instances if record.key not in each.lacks]
        if not serves_somewhere(self._engine, holders, record.manifest):
            self.check_healthy(record)  # says why, and asks with the tokens of now

    def check_healthy(self, record: VersionRecord) -> None:
        """Ask every instance that gets the version's requests for its first probe.

        Raises:
            NotReady: an instance answers wrong or not at all.
        """
        what = f"{record.model} {record.version}"
        gaps = {
            instance.name for instance in self._traffic.instances if record.key in instance.lacks
        }
        instances = self._on_its_engine(record, self._engine.instances())
        if not instances:
            engine = self._traffic.placement.engine_of(record)
            raise NotReady(
                f"{what} gets no traffic, because no instance of {engine} answers: see "
                "`vlserve status`"
            )
        holders = [each for each in instances if each.name not in gaps]
        if not holders:
            reason = self._backoff.reason(record.key)
            if reason:
                raise NotReady(f"{what} cannot be loaded again, so it gets no traffic: {reason}")
            raise NotReady(f"{what} is being loaded again after a restart of the engine: wait")
        wrong = failed_probes(self._engine, holders, record.manifest, record.manifest.probes[:1])
        if wrong:
            raise NotReady(f"{what} is not healthy, so it gets no traffic: {wrong[0]}")

    def start_draining(self, record: VersionRecord) -> VersionRecord:
        """Close the path of a ready version, which is then draining. ControlError where it has
        traffic that the ledger does not know of yet."""
        with self._traffic.change_routing():
            if self._traffic.model(record.model).weights.get(record.version):
                raise ControlError(f"{record.model} {record.version} has traffic: it stays")
            return self._ledger.move(*record.key, State.DRAINING, "draining")

    def finish_draining(self, record: VersionRecord, timeout_s: float) -> VersionRecord:
        """Unload a draining version, which is then retired, once no request is under way. It stays
        draining where some are after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self._is_idle(record.key):
            if time.monotonic() > deadline or caller.is_gone():
                return record
            time.sleep(_POLL_S)
        self._engine.unload(*record.key)
        return self._ledger.move(*record.key, State.RETIRED, "unloaded")

    def _is_idle(self, key: Key) -> bool:
        """Return whether the version is idle twice in a row: a request may have been routed just
        before the path closed."""
        for pause_s in (_POLL_S, 0.0):
            if not is_idle(key, self._traffic.observe(), self._traffic.in_flight([key])):
                return False
            time.sleep(pause_s)
        return True

    def _on_its_engine(
        self, record: VersionRecord, instances: Sequence[Instance]
    ) -> list[Instance]:
        """Return those of the instances that are to hold a version."""
        return [each for each in instances if self._traffic.placement.is_on(each.name, record)]

    def _where(self, record: VersionRecord) -> dict[str, Any]:
        """Return what history says of a load on another engine than the version's."""
        placement = self._traffic.placement
        first_choice = placement.instead_of(record)
        if not first_choice:
            return {}
        return {"engine": placement.engine_of(record), "instead_of": first_choice}

    def _check_signature(self, record: VersionRecord) -> None:
        """Verify a version's signature with today's keys, and note who signed it.

        Raises:
            SignatureRefused: it is not trusted.
        """
        signer = self._trust.check(*record.key, record.sha256, read_beside(record.archive))
        if signer != record.signer:
            with suppress(LedgerUnwritable):  # it holds, whoever writes that down
                self._ledger.sign(*record.key, signer)

    def _load_and_probe(self, record: VersionRecord) -> None:
        self._check_signature(record)
        with self._archives.checked(record) as archive:
            self._load_by_engine(record, archive)

    def _load_by_engine(self, record: VersionRecord, archive: Path) -> None:
        engine = self._traffic.placement.engine_of(record)
        if record.tuning is not None:
            entries = [holding.get(record.key) for holding in self._engine.loaded().values()]
            try:
                self._engine.load(*record.key, archive, record.tuning.serving, engine)
                self._check_answers(record)
                return
            except CallerGone:  # says nothing of the tuning
                raise
            except LoadFailed as error:
                self._ledger.tune(*record.key, None, reason=str(error))
            if not any(each and each.workers_ready for each in entries):  # else it may be in use
                self._engine.unload(*record.key)
        self._engine.load(*record.key, archive, engine=engine)
        self._check_answers(record)

    def _warm_up(self, record: VersionRecord) -> None:
        """Warm up the instances that hold nothing else: they have served no request yet. Not by
        an adopted version, whose handler may do more than answer."""
        if record.manifest.adopted:
            return
        alone = {
            name
            for name, holding in self._traffic.observe().items()
            if set(holding) == {record.key}
        }
        cold = [instance for instance in self._engine.instances() if instance.name in alone]
        if cold:
            warm_up(self._engine, cold, record.manifest)

    def _check_answers(self, record: VersionRecord) -> None:
        instances = self._on_its_engine(record, self._engine.instances())
        refuse_wrong_answers(self._engine, instances, record.manifest)
