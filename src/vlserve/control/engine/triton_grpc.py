"""Load and unload of Triton's model repository over gRPC: over HTTP a load that hangs would keep
requests on kept connections waiting."""

from functools import cache
from pathlib import Path
from typing import Any

import grpc

from vlserve.control.engine import grpc_calls
from vlserve.errors import ControlError, EngineUnavailable, LoadFailed

_PROTO = Path(__file__).with_name("triton_repository.proto")
_TOKEN_HEADER = "triton-grpc-protocol-authorization"
_UNLOAD_TIMEOUT_S = 10.0


@cache
def _messages(method: str) -> list[Any]:
    return grpc_calls.message_classes(
        _PROTO, "inference", (f"{method}Request", f"{method}Response")
    )


def load(address: str, token: str, name: str, timeout_s: float) -> None:
    """Load a model of the repository; returns once its workers are up.

    Raises:
        LoadFailed: with the words of what failed.
        TimeoutError: it is not up in time; Triton may be at it still.
        CallerGone: nobody waits for it any more; likewise.
        EngineUnavailable: nothing answers at ``address`` (host:port).
    """
    try:
        _call(address, token, "RepositoryModelLoad", name, timeout_s, "the load was stopped")
    except grpc.RpcError as error:
        raise _failure(error, address) from error


def unload(address: str, token: str, name: str) -> None:
    """Ask for the end of a model; what runs and waits is answered first. One that is not loaded is
    no error. A caller who went away does not stop it: it takes away what he asked for.

    Raises:
        ControlError: with Triton's words, or because it did not answer in time.
        EngineUnavailable: nothing answers at ``address`` (host:port).
    """
    try:
        _call(address, token, "RepositoryModelUnload", name, _UNLOAD_TIMEOUT_S)
    except grpc.RpcError as error:
        failure = _failure(error, address)
        if isinstance(failure, EngineUnavailable):
            raise failure from error
        reason = str(failure) or f"no answer within {_UNLOAD_TIMEOUT_S:g} s"
        raise ControlError(f"Triton did not unload {name}: {reason}") from error


def _call(
    address: str, token: str, method: str, name: str, timeout_s: float, message: str = ""
) -> None:
    request_class, response_class = _messages(method)
    grpc_calls.call(
        address,
        f"/inference.GRPCInferenceService/{method}",
        request_class(model_name=name),
        response_class,
        timeout_s,
        (_TOKEN_HEADER, f"Bearer {token}"),
        message,
    )


def _failure(error: Any, address: str) -> Exception:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and "not ready" not in details:
        return EngineUnavailable(f"the engine at {address} went away: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimeoutError()
    return LoadFailed(failure_reason(details) or f"Triton answered {code.name}")


def failure_reason(details: str) -> str:
    """Return the first line of the exception that a worker died of, out of what Triton says of a
    failed load:

    failed to load 'm-1', version 1 is at UNAVAILABLE state: Internal: ValueError: text

    At:
      file(line): function
    """
    text = details.partition("\n\nAt:\n")[0].strip()
    for mark in ("UNAVAILABLE state: ", "Internal: "):
        text = text.rpartition(mark)[2]
    return text.strip(" ;\n").partition("\n")[0]
