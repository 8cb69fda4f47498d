"""Calls of an engine's gRPC API, with messages compiled from a .proto file at the first use."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from vlserve.control import caller
from vlserve.errors import ControlError, EngineUnavailable

_CONNECT_TIMEOUT_S = 5.0
_LOOK_S = 0.5  # how often the caller is asked whether he still waits
_OPTIONS = (("grpc.enable_http_proxy", 0),)  # loopback only, whatever the environment says


def message_classes(proto: Path, package: str, names: Sequence[str]) -> list[Any]:
    """Return the classes of the messages ``names`` of ``package``, which ``proto`` defines.

    Raises:
        ControlError: the file cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="vlserve-proto-") as folder:
        output = Path(folder) / "compiled"
        command = ["protoc", f"-I{proto.parent}", f"--descriptor_set_out={output}", proto.name]
        if protoc.main(command):
            raise ControlError(f"{proto} cannot be compiled")
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in names
    ]


def call(
    address: str,
    method: str,
    request: Any,
    response_class: Any,
    timeout_s: float,
    metadata: tuple[str, str],
    message: str = "",
) -> None:
    """Make one call, and return once it succeeded.

    Args:
        address: host:port.
        method: "/package.Service/Method".
        timeout_s: seconds until the call is given up.
        metadata: name and value of the header that carries the token.
        message: what happened, where nobody waits for the outcome any more; empty: the call goes
            on all the same, as where something is taken away.

    Raises:
        grpc.RpcError: the server refused, or did not end in time.
        EngineUnavailable: nothing answers at ``address``.
        CallerGone: nobody waits for it any more; the server may be at it still.
    """
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise EngineUnavailable(f"the engine does not answer gRPC at {address}") from error
        unary = channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_class.FromString,
        )
        future = unary.future(request, timeout=timeout_s, metadata=(metadata,))
        try:
            _wait_for(future, message)
        finally:
            future.cancel()


def _wait_for(future: Any, message: str) -> None:
    while True:
        try:
            future.result(timeout=_LOOK_S)
            return
        except grpc.FutureTimeoutError:
            if message:
                caller.refuse_if_gone(message)
