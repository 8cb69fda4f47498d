"""A rollback, in threads that neither loads nor other rollbacks keep waiting."""

from functools import partial

from fastapi import Request

from vlserve.control.api.threads import Threads
from vlserve.control.outcomes import TrafficChange
from vlserve.control.service import ControlService


async def roll_back(
    request: Request,
    service: ControlService,
    threads: Threads,
    model: str,
    version: int | None = None,
) -> TrafficChange:
    """Roll back: see `ControlService.rollback`."""
    look = partial(service.goes_back_at_once, model, version)
    at_once = await threads.move_traffic(request, look)
    carry_out = threads.move_traffic if at_once else threads.load_and_go_back
    return await carry_out(request, partial(service.rollback, model, version))
