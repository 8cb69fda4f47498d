"""The control service over HTTP. `python -m vlserve.control.api.app` runs it."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import uvicorn
from anyio import to_thread
from fastapi import Depends, FastAPI, Security
from fastapi_offline import FastAPIOffline

from vlserve.control.api.access import KEY_SCHEME, Door
from vlserve.control.api.callers import Callers
from vlserve.control.api.connections import guarded_protocol
from vlserve.control.api.console.actions import actions
from vlserve.control.api.console.live import live
from vlserve.control.api.console.login import login
from vlserve.control.api.console.pairs import pairs
from vlserve.control.api.console.routes import pages
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.console.trials import client_view, trials
from vlserve.control.api.console.work import work
from vlserve.control.api.errors import answer_errors
from vlserve.control.api.feedback_routes import feedback_routes
from vlserve.control.api.gateway_openapi import describe_predictions
from vlserve.control.api.roles import role_check
from vlserve.control.api.routes import routes
from vlserve.control.api.threads import Threads
from vlserve.control.api.torchserve import torchserve_routes
from vlserve.control.api.verdict_routes import verdict_routes
from vlserve.control.assembly import Control, assemble
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.gateway.writer_lock import gateway_writer
from vlserve.control.key import renew_key
from vlserve.control.wire.views import ErrorView
from vlserve.errors import VlserveError
from vlserve.settings import Settings, load_settings


def create_app(control: Control, settings: Settings, key: str) -> FastAPI:
    """The HTTP edge of ``control``, whose tick runs while the app does.

    Each request but those of the API page itself must carry ``key``, the owner's, or a named key
    that has the role that its route needs.
    """
    threads, callers = Threads(settings.control.loads_at_once), Callers(key, control.named_keys)
    sessions = Sessions(callers.is_in_force)
    check_role = role_check(threads, control.service.refusals)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        control.start()
        yield
        await to_thread.run_sync(control.stop)

    app = FastAPIOffline(  # /docs without a content delivery network
        title="vlserve control",
        description="Register, release, roll back and unload versions. The command line uses it. "
        "To try a request here, press Authorize and give the key: `cat .vlserve/control.key`.",
        version="1",
        lifespan=lifespan,
        dependencies=[Security(KEY_SCHEME), Depends(check_role)],
        responses={
            code: {"model": ErrorView, "description": what}
            for code, what in (
                (401, "No key, or a wrong one"),
                (403, "A key without the role that the call needs, or a page of another site"),
                (404, "Unknown"),
                (409, "Refused"),
                (422, "Unusable"),
                (503, "Down"),
            )
        },
    )
    answer_errors(app)
    app.include_router(routes(control.service, threads, sessions))
    app.include_router(feedback_routes(control.service, threads))
    app.include_router(verdict_routes(control.service, threads))
    app.include_router(torchserve_routes(control.service, threads, settings))
    stress_dir = settings.state_dir / "stress"
    app.include_router(work(control.service, sessions, threads, stress_dir))
    app.include_router(trials(control.service, sessions, threads, client_view(settings)))
    app.include_router(login(sessions, callers))
    for router in (live, pages, pairs, actions):  # actions last: it has paths with any word
        app.include_router(router(control.service, sessions, threads))
    app.add_middleware(Door, callers=callers, sessions=sessions, settings=settings.control)
    return app


def main() -> int:
    """Run until told to stop. Exit code 1, with one line, when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every look at the engine
    try:
        settings = load_settings()
        with gateway_writer(settings):
            return _run(settings)
    except (VlserveError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    tls = settings.control_tls
    if tls is not None:
        tls.refuse_unusable()
    engine = EngineGroup(endpoints(settings), settings.engine)
    control = assemble(settings, engine, EnvoyGateway(settings))
    key = renew_key(settings.control_key_file)
    app = create_app(control, settings, key)
    describe_predictions(app, settings.folder("handlers"), settings.gateway_url)
    with closing(engine):
        uvicorn.run(
            app,
            host="127.0.0.1" if settings.control.host == "localhost" else settings.control.host,
            port=settings.control.port,
            log_level="warning",
            access_log=False,
            http=guarded_protocol(),
            ws="none",
            loop="vlserve.control.api.connections:TimedHandshakes",
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            proxy_headers=False,  # who calls is told by his address, which no header changes
            timeout_graceful_shutdown=5,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
