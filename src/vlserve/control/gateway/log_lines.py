"""The lines of the gateway's two logs, as serving_config/gateway/envoy.yaml has Envoy write them.

Envoy's operators: https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage
A test holds the fields here to the file. Fields that an operator adds there are passed over, and
lines of before 0.1.0, which have no schema number, are schema 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from vlserve_worker.own_ids import is_own

_CLIENT_LEFT = "DC"  # Envoy's flag for a request whose client hung up


@dataclass(frozen=True, kw_only=True)
class AccessLine:
    """One request of a client, written when it ended."""

    at: str = ""
    """When it began: UTC, ISO 8601."""
    request_id: str | None = None
    method: str | None = None
    path: str | None = None
    """As the client sent it, without its query; its first 512 bytes."""
    model: str | None = None
    version: str | None = None
    """Which answered last; null where no version did."""
    step: str | None = None
    """Of the rollout whose weights chose the version, as `step_name`; null where a client did."""
    caller: str | None = None
    """The sticky key, its first 256 bytes."""
    status: int | None = None
    """0 where the client went away before there was one."""
    flags: str | None = None
    """Envoy's response flags, with commas between them."""
    details: str | None = None
    duration_ms: float | None = None
    """From the request's first byte to the answer's last."""
    received_ms: float | None = None
    """From the request's first byte to its last; null where it never was whole, and in lines of
    before 0.2."""
    upstream_ms: float | None = None
    """From the request's first byte to the engine to the answer's first."""
    tries: int | None = None
    upstream: str | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    client: str | None = None
    """Its address."""
    schema: Literal[1] = 1

    @property
    def number(self) -> int | None:
        """The version that answered; None where none did, and for what is no number."""
        return int(self.version) if self.version and self.version.isdecimal() else None

    @property
    def waited_ms(self) -> float:
        """From the request's last byte to the answer's."""
        return max(0.0, (self.duration_ms or 0.0) - (self.received_ms or 0.0))

    @property
    def client_left(self) -> bool:
        """Whether the client hung up before there was an answer."""
        return not self.status and _CLIENT_LEFT in (self.flags or "").split(",")


@dataclass(frozen=True, kw_only=True)
class ShadowLine:
    """One copy of a request that a shadow got; fields as in AccessLine."""

    at: str = ""
    request_id: str | None = None
    model: str | None = None
    version: str | None = None
    step: str | None = None
    """Of the rollout whose shadow it is."""
    status: int | None = None
    flags: str | None = None
    duration_ms: float | None = None
    schema: Literal[1] = 1


_ACCESS, _SHADOW = TypeAdapter(AccessLine), TypeAdapter(ShadowLine)


def is_probe(line: AccessLine) -> bool:
    """Return whether a request is one of the stack's own health checks, which ask for a version by
    its path: a client that takes such an id hides nothing that weights routed."""
    by_path = f"/predictions/{line.model}/{line.version}"
    return is_own(line.request_id or "") and (line.path or "").rstrip("/") == by_path


def read_access_line(fields: Mapping[str, Any]) -> AccessLine:
    """Read one parsed line of access.jsonl.

    Raises:
        pydantic.ValidationError: it is no such line, or has a newer schema.
    """
    return _ACCESS.validate_python(fields)


def parse_access_line(line: bytes) -> AccessLine:
    """Parse and read one line of access.jsonl, in 4 us; raises as `read_access_line`."""
    return _ACCESS.validate_json(line)


def read_shadow_line(fields: Mapping[str, Any]) -> ShadowLine:
    """Read one parsed line of shadow.jsonl; raises as `read_access_line`."""
    return _SHADOW.validate_python(fields)
