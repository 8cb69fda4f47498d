"""rollback and abort while the control service is down, as it is where another process holds the
lock of the ledger.

What the ledger says is read from a copy of its file. The change is noted for the ledger, which the
next control service tells it, and the gateway's last routes are changed.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from vlserve.control import caller
from vlserve.control.domain import Rollout
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.gateway.last_routes import LastRoute, last_routes
from vlserve.control.gateway.writer_lock import gateway_writer
from vlserve.control.lifecycle.probes import serves_somewhere
from vlserve.control.named_keys import OWNER
from vlserve.control.outcomes import TrafficChange
from vlserve.control.ports import Engine
from vlserve.control.rollouts.report import RolloutReport, report
from vlserve.control.rollouts.service import (
    no_release,
    release_under_way,
    report_of_unreadable,
)
from vlserve.control.rollouts.state import StateUnreadable, read_state
from vlserve.control.rollouts.steps import taken_back
from vlserve.control.store.database import LEDGER, copied
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.control.store.unrecorded import ChangeBack, Unrecorded
from vlserve.control.transitions import rollback_target
from vlserve.errors import (
    ControlError,
    GatewayRefused,
    LedgerLost,
    NotReady,
    StackDown,
    Unauthorized,
)
from vlserve.settings import Settings

WHY = "the control service is down, and is told when it is up again"
_WAIT_S = 10.0
"""For a control service that is at its start, and may end it soon."""


def roll_back(
    settings: Settings, engine: Engine, model: str, version: int | None = None
) -> TrafficChange:
    """Give all traffic back to the stable version before, or to the earlier one ``version``; a
    rollout under way is aborted.

    Raises:
        StackDown: The gateway is down too.
        GatewayTaken: A control service runs, or another command goes back.
        Unauthorized: The stack is another user's.
        NothingToRollBackTo, ReleaseUnderWay, ModelNotFound: As for the control service.
        NotReady, EngineUnavailable: The version is not loaded, or answers its probe wrong.
        GatewayRefused: The gateway did not take it; nothing has changed.
    """
    with _opened(settings, engine) as way:
        rollout = way.under_way(model)
        if rollout is None:
            change = way.back(model, version)
        elif version in (None, rollout.stable):
            change = taken_back(rollout, read_state(rollout.state_json), by="user")
        else:
            raise release_under_way(rollout)
        way.go(change)
        return TrafficChange(model, change.version, change.previous, unrecorded=WHY)


def abort(settings: Settings, engine: Engine, model: str) -> RolloutReport:
    """Give stable all traffic again. NoRelease; else as `roll_back`."""
    with _opened(settings, engine) as way:
        rollout = way.under_way(model)
        if rollout is None:
            raise no_release(model)
        way.go(taken_back(rollout, read_state(rollout.state_json), by="user"))
        return way.report(rollout)


class _WayBack:
    """One change back, with the ledger's copy and the gateway at hand."""

    def __init__(
        self, settings: Settings, ledger: Ledger, engine: Engine, gateway: EnvoyGateway
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._gateway = gateway
        self._unrecorded = Unrecorded(ledger, settings.state_dir / "unrecorded.json")

    def under_way(self, model: str) -> Rollout | None:
        self._ledger.model(model)
        record = RolloutStore(self._ledger).under_way(model)
        rollout = self._unrecorded.ended(record) if record else None
        return rollout if rollout and rollout.status.under_way else None

    def back(self, model: str, version: int | None) -> ChangeBack:
        """Return the change to an earlier stable version."""
        stack = self._unrecorded.in_force(self._ledger.model(model)).stack
        return ChangeBack(model, rollback_target(model, stack, version), previous=stack[-1])

    def go(self, change: ChangeBack) -> None:
        """Note a change, and put it in force."""
        self._check(change.model, change.version)
        try:
            self._unrecorded.add_for_good(change, WHY)
        except OSError as error:
            raise ControlError(
                f"the change cannot be noted in {self._settings.state_dir}, so nothing has changed:"
                f" {error.strerror}: look at its disk"
            ) from error
        try:
            self._gateway.give_all_traffic(change.model, change.version)
        except GatewayRefused:
            self._unrecorded.drop_last(change.model)
            raise

    def report(self, rollout: Rollout) -> RolloutReport:
        rollout, state = self._unrecorded.ended(rollout), read_state(rollout.state_json)
        if isinstance(state, StateUnreadable):
            view = report_of_unreadable(self._ledger, rollout, state)
        else:
            view = report(rollout, state)
        return replace(view, unrecorded=WHY)

    def _check(self, model: str, version: int) -> None:
        """Make sure that the version is loaded and answers its first probe right."""
        what = f"{model} {version}"
        if version not in last_routes(self._settings).get(model, LastRoute()).versions:
            raise NotReady(
                f"{what} is not loaded, and the control service, which would load it, is down: "
                "`vlserve up` starts it"
            )
        holdings = self._engine.loaded()
        instances = [
            instance
            for instance in self._engine.instances()
            if (model, version) in holdings.get(instance.name, {})
        ]
        if not serves_somewhere(
            self._engine, instances, self._ledger.version(model, version).manifest
        ):
            raise NotReady(f"{what} does not answer its own probe right: see `vlserve status`")


@contextmanager
def _opened(settings: Settings, engine: Engine) -> Iterator[_WayBack]:
    _refuse_other_users(settings)
    with gateway_writer(settings, _WAIT_S), closing(EnvoyGateway(settings)) as gateway:
        if gateway.start() is None:
            raise StackDown("the gateway does not answer either")
        file = settings.model_store / LEDGER
        if not file.exists():
            raise LedgerLost(f"the ledger {file} is gone: see `vlserve up --rebuild-ledger`")
        with (
            copied(file) as copy,
            Ledger(copy.parent) as ledger,
            caller.known_by(OWNER.name),
        ):
            yield _WayBack(settings, ledger, engine, gateway)


def _refuse_other_users(settings: Settings) -> None:
    """Only the owner's files can be read by the gateway. StackDown where there never was one."""
    try:
        owner = (settings.state_dir / "gateway" / "dynamic").stat().st_uid
    except FileNotFoundError as error:
        raise StackDown("there is no gateway") from error
    except PermissionError:
        owner = None
    if owner != os.geteuid():
        raise Unauthorized(
            f"{settings.state_dir} is another user's: ask as the user who started the stack"
        )
