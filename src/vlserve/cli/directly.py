"""rollback and abort at the gateway itself, where the control service does not answer."""

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from vlserve.control.wire.rollout_views import RolloutView
from vlserve.control.wire.views import Released
from vlserve.errors import GatewayTaken, NotControl, StackDown, Unauthorized
from vlserve.settings import Settings

if TYPE_CHECKING:
    from vlserve.control.ports import Engine

T = TypeVar("T")
Unreached = StackDown | NotControl | Unauthorized
UNREACHED = (StackDown, NotControl, Unauthorized)
"""Nothing answers at the control service's address, or something that is not this stack's: while
the service is down, any program may listen there. One that runs holds the gateway's lock."""


def roll_back_directly(
    settings: Settings, model: str, version: int | None, down: Unreached
) -> Released:
    """Roll back without the control service. ``down``: what it said; raised where the gateway does
    not answer either, or a service that hangs may still change it."""
    from vlserve.control import direct_way_back

    return Released.model_validate(
        _go_back(
            settings,
            down,
            lambda engine: direct_way_back.roll_back(settings, engine, model, version),
        )
    )


def abort_directly(settings: Settings, model: str, down: Unreached) -> RolloutView:
    """Abort without the control service; see `roll_back_directly`."""
    from vlserve.control import direct_way_back

    return RolloutView.model_validate(
        _go_back(settings, down, lambda engine: direct_way_back.abort(settings, engine, model))
    )


def _go_back(settings: Settings, down: Unreached, go_back: "Callable[[Engine], T]") -> T:
    from vlserve.control.engine.endpoints import endpoints
    from vlserve.control.engine.group import EngineGroup

    try:
        with closing(EngineGroup(endpoints(settings), settings.engine)) as engine:
            return go_back(engine)
    except StackDown:
        raise down from None
    except GatewayTaken as error:
        raise StackDown(f"{down}; {error}") from down
