"""The threads that carry requests out. Looks, traffic words and loads have their own each: a
rollback never waits for a thread behind slow loads, nor does health behind anything."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request

from vlserve.control.caller import working_for
from vlserve.errors import ControlBusy

MOST_LOADS = 64
"""Loads that may be under way or waiting; each holds an uploaded archive on disk."""
_HEALTH, _LOOKS, _TRAFFIC, _RETURNS, _DRAINS = 4, 8, 16, 8, 8

T = TypeVar("T")


class Threads:
    """Of one event loop. ``loads_at_once`` loads run at one time; others wait for their turn."""

    def __init__(self, loads_at_once: int) -> None:
        self._health = CapacityLimiter(_HEALTH)
        self._looks = CapacityLimiter(_LOOKS)
        self._traffic = CapacityLimiter(_TRAFFIC)
        self._returns = CapacityLimiter(_RETURNS)
        self._drains = CapacityLimiter(_DRAINS)
        self._verdicts = CapacityLimiter(1)
        self._loads = CapacityLimiter(loads_at_once)
        self._admitted = 0

    async def health(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._health)

    async def look(self, work: Callable[[], T]) -> T:
        """Carry out what reads, or notes something down, and moves no traffic."""
        return await to_thread.run_sync(work, limiter=self._looks)

    async def judge(self, work: Callable[[], T]) -> T:
        """Carry out what reads logs for a verdict: one at a time, and no look waits for it."""
        return await to_thread.run_sync(work, limiter=self._verdicts)

    async def move_traffic(self, request: Request, work: Callable[[], T]) -> T:
        """Carry out what moves traffic: whole, once it has begun, whoever waits for it."""
        return await _for_caller(request, self._traffic, work)

    async def load_and_go_back(self, request: Request, work: Callable[[], T]) -> T:
        """Carry out a rollback that loads its version first: it waits for no load of others, and no
        rollback to a version that is loaded waits for it."""
        return await _for_caller(request, self._returns, work)

    async def drain(self, request: Request, work: Callable[[], T]) -> T:
        return await _for_caller(request, self._drains, work, stops=True)

    async def load(self, request: Request, work: Callable[[], T]) -> T:
        """Carry out what loads a version, which stops when the caller goes away."""
        return await _for_caller(request, self._loads, work, stops=True)

    @contextmanager
    def admitted_load(self) -> Iterator[None]:
        """Receive and carry out one more load in the ``with`` body.

        Raises:
            ControlBusy: `MOST_LOADS` are under way or wait.
        """
        if self._admitted >= MOST_LOADS:
            raise ControlBusy(f"{MOST_LOADS} loads are under way or wait: try again later")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1


async def _for_caller(
    request: Request, limiter: CapacityLimiter, work: Callable[[], T], stops: bool = False
) -> T:
    """Do ``work`` in a thread of ``limiter``. A caller who goes away before it begins is not worked
    for; what has begun learns of it by vlserve.control.caller where it ``stops``."""
    disconnect = threading.Event()
    results: list[T] = []
    failures: list[Exception] = []  # out of the task group as themselves, not as a group

    async def watch(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        disconnect.set()
        scope.cancel()  # what has begun is shielded from it

    def begin() -> T:
        with working_for(disconnect.is_set if stops else lambda: False):
            return work()

    async with anyio.create_task_group() as group:
        group.start_soon(watch, group.cancel_scope)
        try:
            results.append(await to_thread.run_sync(begin, limiter=limiter))
        except Exception as error:
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise HTTPException(499, "the caller went away before the request was begun")
    return results[0]
