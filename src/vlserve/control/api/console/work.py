"""The pages of work beside serving: runs of `vlserve stress` compared, and offline jobs."""

from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from vlserve.control.api.console.access import visit
from vlserve.control.api.console.load_runs import load_tests_screen, newest_runs
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import visitors_page
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.threads import Threads
from vlserve.control.service import ControlService


def work(
    service: ControlService, sessions: Sessions, threads: Threads, stress_dir: Path
) -> APIRouter:
    """Return the pages. ``stress_dir``: where `vlserve stress` writes its runs."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

    @router.get("/load-tests")
    async def load_tests(
        request: Request, model: Annotated[str, Query(max_length=100)] = ""
    ) -> Response:
        visitor = visit(sessions, request)
        runs = await threads.look(partial(newest_runs, stress_dir))
        return visitors_page(visitor, "load_tests.html.j2", load_tests_screen(runs, model))

    @router.get("/batch-jobs")
    async def batch_jobs(request: Request) -> Response:
        visitor = visit(sessions, request)
        jobs = await threads.look(service.batch_jobs.jobs)
        return visitors_page(visitor, "batch_jobs.html.j2", {"jobs": jobs})

    return router
