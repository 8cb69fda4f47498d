"""The control service over HTTP, on loopback alone. `python -m vlserve.control.api.app` runs it."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from anyio import to_thread
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from vlserve.control.api.access import refuse_foreign
from vlserve.control.api.errors import answer_errors
from vlserve.control.api.gateway_openapi import describe_predictions
from vlserve.control.api.routes import routes
from vlserve.control.assembly import Control, assemble
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.torchserve import TorchServe
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.wire.views import ErrorView
from vlserve.errors import VlserveError
from vlserve.settings import load_settings


def create_app(control: Control, max_archive_bytes: int) -> FastAPI:
    """The HTTP edge of ``control``, whose tick runs while the app does."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        control.start()
        yield
        await to_thread.run_sync(control.stop)

    app = FastAPIOffline(  # /docs without a content delivery network
        title="vlserve control",
        description="Register, release, roll back and unload versions. The command line uses it.",
        version="1",
        lifespan=running,
        dependencies=[Depends(refuse_foreign)],
        responses={
            code: {"model": ErrorView, "description": what}
            for code, what in ((404, "Unknown"), (409, "Refused"), (422, "Unusable"), (503, "Down"))
        },
    )
    answer_errors(app)
    app.include_router(routes(control.service, max_archive_bytes))
    return app


def main() -> int:
    """Run until told to stop. Exit code 1, with one line, when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every look at the engine
    try:
        settings = load_settings()
        engine = TorchServe(endpoints(settings), settings.engine)
        control = assemble(settings, engine, EnvoyGateway(settings))
    except VlserveError as error:
        print(error, file=sys.stderr)
        return 1
    app = create_app(control, settings.control.max_archive_bytes)
    describe_predictions(app, settings.folder("handlers"), settings.gateway_url)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=settings.control.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
