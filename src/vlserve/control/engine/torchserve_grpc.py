"""RegisterModel of TorchServe over gRPC: the one way to load that stalls no other request.

The messages are built from the management.proto inside the installed TorchServe's own jar, so
nothing of it is copied here and nothing can go stale.
"""

import importlib.util
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from vlserve.control import caller
from vlserve.errors import ControlError, EngineUnavailable, LoadFailed
from vlserve.settings import EngineSettings

_PROTO = "management.proto"
_SERVICE = "org.pytorch.serve.grpc.management"
_CONNECT_TIMEOUT_S = 5.0
_LOOK_S = 0.5  # how often the caller is asked whether he still waits
_OPTIONS = (("grpc.enable_http_proxy", 0),)  # loopback only, whatever the environment says


@dataclass(frozen=True)
class _Messages:
    request: Any
    response: Any


@cache
def _messages() -> _Messages:
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ControlError("TorchServe is not installed: pip install torchserve==0.12.0")
    jar = Path(spec.origin).parent / "frontend" / "model-server.jar"
    with tempfile.TemporaryDirectory(prefix="vlserve-proto-") as folder:
        compiled = Path(folder) / "compiled"
        with zipfile.ZipFile(jar) as archive:
            archive.extract(_PROTO, folder)
        if protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={compiled}", _PROTO]):
            raise ControlError(f"{_PROTO} of {jar} cannot be compiled")
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return _Messages(
        *(
            message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_SERVICE}.{name}"))
            for name in ("RegisterModelRequest", "ManagementResponse")
        )
    )


def register(address: str, token: str, archive: Path, settings: EngineSettings) -> None:
    """Register ``archive`` with its workers up; returns once they are.

    Raises:
        LoadFailed: with TorchServe's own words.
        CallerGone: nobody waits for it any more; TorchServe may be at it still.
        EngineUnavailable: nothing answers at ``address`` (host:port).
    """
    messages = _messages()
    request = messages.request(
        url=f"file://{archive}",
        initial_workers=settings.workers,
        synchronous=True,
        batch_size=settings.batch_size,
        max_batch_delay=settings.max_batch_delay_ms,
        response_timeout=settings.response_timeout_s,
        startup_timeout=max(1, int(settings.load_timeout_s)),
    )
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise EngineUnavailable(f"the engine does not answer gRPC at {address}") from error
        call = channel.unary_unary(
            f"/{_SERVICE}.ManagementAPIsService/RegisterModel",
            request_serializer=messages.request.SerializeToString,
            response_deserializer=messages.response.FromString,
        )
        loading = call.future(
            request,
            timeout=settings.load_timeout_s,
            metadata=(("authorization", f"Bearer {token}"),),
        )
        try:
            _wait_for(loading)
        except grpc.RpcError as error:
            raise _failure(error, address, settings.load_timeout_s) from error
        finally:
            loading.cancel()


def _wait_for(loading: Any) -> None:
    """Return once it is loaded. CallerGone where nobody waits for it any more."""
    while True:
        try:
            loading.result(timeout=_LOOK_S)
            return
        except grpc.FutureTimeoutError:
            caller.refuse_if_gone("the load was stopped")


def _failure(error: Any, address: str, timeout_s: float) -> ControlError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return EngineUnavailable(f"the engine at {address} went away while loading: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LoadFailed(f"its workers were not up after {timeout_s:g} s")
    return LoadFailed(details.splitlines()[0] if details else f"TorchServe answered {code.name}")
