"""RegisterModel of TorchServe over gRPC: the one way to load that stalls no other request.

The messages are built from the management.proto inside the installed TorchServe's own jar, so
nothing of it is copied here and nothing can go stale.
"""

import importlib.util
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from vlserve.control.engine import grpc_calls
from vlserve.errors import ControlError, EngineUnavailable, LoadFailed
from vlserve.settings_sections import EngineSettings

_PROTO = "management.proto"
_SERVICE = "org.pytorch.serve.grpc.management"
_LEAST_DELAY_MS = 1
"""TorchServe reads a delay of 0, as of a version that was tuned on Triton, as 100."""


@cache
def _messages() -> list[Any]:
    """Return the classes of RegisterModel's request and response."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ControlError("TorchServe is not installed: pip install torchserve==0.12.0")
    jar = Path(spec.origin).parent / "frontend" / "model-server.jar"
    with tempfile.TemporaryDirectory(prefix="vlserve-proto-") as folder:
        with zipfile.ZipFile(jar) as archive:
            proto = Path(archive.extract(_PROTO, folder))
        return grpc_calls.message_classes(
            proto, _SERVICE, ("RegisterModelRequest", "ManagementResponse")
        )


def register(address: str, token: str, archive: Path, settings: EngineSettings) -> None:
    """Register ``archive`` with its workers up; returns once they are.

    Raises:
        LoadFailed: with TorchServe's own words.
        CallerGone: nobody waits for it any more; TorchServe may be at it still.
        EngineUnavailable: nothing answers at ``address`` (host:port).
    """
    request_class, response_class = _messages()
    request = request_class(
        url=f"file://{archive}",
        initial_workers=settings.workers,
        synchronous=True,
        batch_size=settings.batch_size,
        max_batch_delay=max(_LEAST_DELAY_MS, settings.max_batch_delay_ms),
        response_timeout=settings.response_timeout_s,
        startup_timeout=max(1, int(settings.load_timeout_s)),
    )
    try:
        grpc_calls.call(
            address,
            f"/{_SERVICE}.ManagementAPIsService/RegisterModel",
            request,
            response_class,
            settings.load_timeout_s,
            ("authorization", f"Bearer {token}"),
            "the load was stopped",
        )
    except grpc.RpcError as error:
        raise _failure(error, address, settings.load_timeout_s) from error


def _failure(error: Any, address: str, timeout_s: float) -> ControlError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return EngineUnavailable(f"the engine at {address} went away while loading: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LoadFailed(f"its workers were not up after {timeout_s:g} s")
    return LoadFailed(details.splitlines()[0] if details else f"TorchServe answered {code.name}")
