"""Calls of the Open Inference Protocol's gRPC service, by somebody else's messages (Triton's)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

ANY_SIZE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
WITHIN_S = 60.0


@dataclass(frozen=True)
class CallResult:
    """``answer``: the message, None where the call failed. ``headers``: what came before it;
    ``trailers``: after it."""

    code: grpc.StatusCode
    details: str
    answer: Any
    headers: Mapping[str, str]
    trailers: Mapping[str, str]


class Calls:
    """A client of one port."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def call(self, method: str, request: Any = None, **metadata: str) -> CallResult:
        """Call a method of the service; ``x_sticky_key`` is the metadata x-sticky-key."""
        request = getattr(service_pb2, f"{method}Request")() if request is None else request
        return self._result(getattr(self._stub, method), request, metadata)

    def infer(
        self, model: str, data: bytes = b"", version: str = "", **metadata: str
    ) -> CallResult:
        """Call ModelInfer with one element of BYTES called image, raw."""
        return self.call("ModelInfer", image_request(model, data, version), **metadata)

    def call_path(self, path: str, message: bytes = b"") -> CallResult:
        """Call any method with any bytes."""
        return self._result(self._channel.unary_unary(path), message, {})

    def _result(self, method: Any, request: Any, metadata: Mapping[str, str]) -> CallResult:
        pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        future = method.future(request, timeout=WITHIN_S, metadata=pairs)
        answer = None if future.exception() else future.result()
        return CallResult(
            future.code(),
            future.details(),
            answer,
            dict(future.initial_metadata() or ()),
            dict(future.trailing_metadata() or ()),
        )


def image_request(model: str, data: bytes = b"", version: str = "") -> Any:
    """A ModelInferRequest with one element of BYTES called image, raw."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    return request


@contextmanager
def calls_to(port: int) -> Iterator[Calls]:
    """A client of 127.0.0.1:port, whose connection is closed afterwards."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=ANY_SIZE) as channel:
        yield Calls(channel)
