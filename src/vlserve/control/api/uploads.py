"""Archives that come in as the body of a request."""

from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Query, Request
from starlette.requests import ClientDisconnect

from vlserve.control import caller
from vlserve.control.api.threads import Threads
from vlserve.control.domain import EngineKind, Registration
from vlserve.control.service import ControlService
from vlserve.control.tuning import Tuning
from vlserve.errors import UploadCutOff

FileName = Annotated[
    str, Query(max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]*$", examples=["tagger-2.mar"])
]

UserName = Annotated[str, Query(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$", examples=["anna"])]


async def register_upload(
    request: Request,
    service: ControlService,
    threads: Threads,
    name: str,
    tuning: Tuning | None = None,
    engine: EngineKind | None = None,
    by: str = "",
) -> Registration:
    """Receive the archive in the body of ``request`` and register it; see `Registrar.register`.

    Args:
        by: who registers it, as he says himself, for the history.

    Raises:
        UploadCutOff: the body ended early.
        ControlBusy: too many loads are under way.
    """
    size = int(request.headers.get("content-length", 0))
    with threads.admitted_load(), service.room_for(size) as archive:
        await _receive(request, archive)

        def register_as() -> Registration:
            with caller.named(by):
                return service.register(archive, name, tuning, engine)

        return await threads.load(request, register_as)


async def _receive(request: Request, archive: Path) -> None:
    """Write the body to ``archive``."""
    received = 0
    try:
        async with await anyio.open_file(archive, "wb") as file:
            async for chunk in request.stream():
                received += len(chunk)
                await file.write(chunk)
    except ClientDisconnect as error:
        raise UploadCutOff(f"the upload was cut off after {received} bytes") from error
