"""Archives that come in as the body of a request."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Query, Request
from starlette.requests import ClientDisconnect

from vlserve.control import caller
from vlserve.control.api.threads import Threads
from vlserve.control.domain import EngineKind
from vlserve.control.outcomes import Registration
from vlserve.control.service import ControlService
from vlserve.control.tuning import Tuning
from vlserve.errors import UploadCutOff
from vlserve.signing.beside import SignatureFiles, refuse_large

FileName = Annotated[
    str, Query(max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]*$", examples=["tagger-2.mar"])
]

UserName = Annotated[str, Query(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$", examples=["anna"])]


SignatureBytes = Annotated[
    int,
    Query(
        ge=0,
        description="How many bytes of the body, before the archive, are its signature "
        "(signature_bytes), and after that its provenance (provenance_bytes): see docs/signing.md.",
    ),
]


@dataclass(frozen=True)
class SignatureSizes:
    """How many bytes of a body, before the archive, are its signature and then its provenance."""

    signature: int = 0
    provenance: int = 0


NOT_SIGNED = SignatureSizes()


async def register_upload(
    request: Request,
    service: ControlService,
    threads: Threads,
    name: str,
    tuning: Tuning | None = None,
    engine: EngineKind | None = None,
    by: str = "",
    sizes: SignatureSizes = NOT_SIGNED,
) -> Registration:
    """Receive the archive in the body of ``request`` and register it; see `Registrar.register`.

    Args:
        by: who registers it, as he says himself, for the history.
        sizes: of the signature and the provenance that the body begins with.

    Raises:
        SignatureUnreadable: one of these is too large.
        UploadCutOff: the body ended early.
        ControlBusy: too many loads are under way.
    """
    refuse_large(sizes.signature, "the signature")
    refuse_large(sizes.provenance, "the provenance")
    size = int(request.headers.get("content-length", 0))
    with threads.admitted_load(), service.room_for(size) as archive:
        begin = await _receive(request, archive, sizes.signature + sizes.provenance)
        files = SignatureFiles(begin[: sizes.signature], begin[sizes.signature :])

        def register_as() -> Registration:
            with caller.named(by):
                signature = None if sizes == NOT_SIGNED else files
                return service.register(archive, name, tuning, engine, signature)

        return await threads.load(request, register_as)


async def _receive(request: Request, archive: Path, before: int) -> bytes:
    """Write the body to ``archive``, without the ``before`` bytes that it begins with, and return
    these."""
    size, begin = 0, b""
    try:
        async with await anyio.open_file(archive, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                rest = before - len(begin)
                begin += chunk[:rest]
                await file.write(chunk[rest:])
    except ClientDisconnect as error:
        raise UploadCutOff(f"the upload was cut off after {size} bytes") from error
    if len(begin) < before:
        raise UploadCutOff(f"the body has {size} bytes, fewer than its signature")
    return begin
