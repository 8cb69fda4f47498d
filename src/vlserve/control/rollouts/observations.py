"""Requests that another gateway split between two versions, as lines that its owner sends.

They are kept in a log of their own, in the order in which they came, whose size is bounded by its
rotation. docs/other-rollout-tools.md describes the lines.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from vlserve.control.log_rotation import rotate
from vlserve.errors import (
    ObservationInvalid,
    ObservationsTooMany,
    ObservationsUnwritable,
    ObservationTooLong,
)
from vlserve.runtime.errors import wrong_fields
from vlserve.strict_numbers import StrictNumbers

MAX_LINES = 5_000
MAX_LINE_BYTES = 4 * 1024
MAX_AHEAD_S = 300.0
"""How far ahead of this machine's clock a line's time may be."""
MAX_AGE_S = 24 * 3600.0
IDS_KEPT = 50_000
"""Ids that are remembered, so that a line that is sent twice counts once."""
_MOST_TAIL = 16 * 1024 * 1024
"""Bytes of the log that are read for those ids after a restart."""
_MAX_MS = 24 * 3600 * 1000.0

VersionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Observation(StrictNumbers):
    """One request that had an end, as its sender describes it."""

    version: VersionName = Field(description="Which answered: a name of the sender's choice.")
    status: int = Field(ge=0, le=599, description="HTTP status; 0: no answer came.")
    latency_ms: float = Field(ge=0, le=_MAX_MS, description="Until the answer's end, ms.")
    at: AwareDatetime | None = Field(
        default=None,
        description="When the request ended, ISO 8601 with its zone, at most a day ago; left out: "
        "now.",
    )
    id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Of the request: a line whose id came before counts once."
    )
    caller: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="By which the gateway splits; left out: it drew at random."
    )
    label: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="The answer's best label, where it has some."
    )


@dataclass(frozen=True, kw_only=True)
class ObservationLine:
    """One line of observations.jsonl. ``at``: when it came, ``ended_at``: when its request ended;
    both UTC, ISO 8601. The rest as in `Observation`."""

    at: str
    ended_at: str
    model: str
    version: str
    status: int
    latency_ms: float
    id: str | None = None
    caller: str | None = None
    label: str | None = None
    schema: Literal[1] = 1


_LINE = TypeAdapter(ObservationLine)


def read_observation_line(fields: Mapping[str, Any]) -> ObservationLine:
    """Read one parsed line of the log.

    Raises:
        pydantic.ValidationError: it is no such line, or has a newer schema.
    """
    return _LINE.validate_python(fields)


@dataclass(frozen=True)
class Taken:
    """What became of some lines. ``repeated``: those whose id had come before."""

    accepted: int
    repeated: int


def parse_observations(body: bytes, now: float) -> list[Observation]:
    """Return the lines of a body, one JSON object each; empty lines are passed over.

    Args:
        now: Unix time, s.

    Raises:
        ObservationsTooMany: it has more than `MAX_LINES` lines.
        ObservationTooLong: a line has more than `MAX_LINE_BYTES`.
        ObservationInvalid: a line is no observation, or of another time; it names the line.
    """
    lines = body.count(b"\n") + (not body.endswith(b"\n"))
    if lines > MAX_LINES:
        raise ObservationsTooMany(
            f"the body has {lines} lines, and may have {MAX_LINES}: send the rest in another one"
        )
    return list(_parsed(body, now))


def _parsed(body: bytes, now: float) -> Iterator[Observation]:
    for number, line in enumerate(body.split(b"\n"), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise ObservationTooLong(
                f"line {number} has {len(line)} bytes, and may have {MAX_LINE_BYTES}"
            )
        if not line.strip():
            continue
        try:
            observation = Observation.model_validate_json(line)
        except ValidationError as error:
            raise ObservationInvalid(f"line {number}: {wrong_fields(error, 'line')}") from error
        if problem := _wrong_time(observation.at, now):
            raise ObservationInvalid(f"line {number}: {problem}")
        yield observation


def _wrong_time(at: datetime | None, now: float) -> str:
    if at is None:
        return ""
    ahead = (at - datetime.fromtimestamp(now, UTC)).total_seconds()
    if ahead > MAX_AHEAD_S:
        return f"at is {ahead:.0f} s ahead of this machine's clock, and may be {MAX_AHEAD_S:.0f}"
    if -ahead > MAX_AGE_S:
        return f"at is {-ahead:.0f} s ago, and may be {MAX_AGE_S:.0f}"
    return ""


class ObservationLog:
    """Thread-safe."""

    def __init__(self, log: Path, now: Callable[[], float] = time.time) -> None:
        self.path = log
        self._now = now
        self._lock = threading.Lock()
        self._ids: OrderedDict[bytes, None] | None = None

    def take(self, model: str, body: bytes) -> Taken:
        """Keep all lines of a body, or none. Raises as `parse_observations`.

        Raises:
            ObservationsUnwritable: the log cannot be written.
        """
        now = self._now()
        observations = parse_observations(body, now)
        with self._lock:
            if self._ids is None:
                self._ids = _known_ids(self.path)
            fresh = [each for each in observations if self._is_new(model, each)]
            try:
                self._append(b"".join(_line(model, each, now) for each in fresh))
            except OSError as error:
                self._ids = None  # those that were not written are new again
                raise ObservationsUnwritable(
                    f"{self.path} cannot be written, and no line was kept: "
                    f"{error.strerror or error}"
                ) from error
        return Taken(len(fresh), len(observations) - len(fresh))

    def _is_new(self, model: str, observation: Observation) -> bool:
        assert self._ids is not None
        if observation.id is None:
            return True
        name = _id_name(model, observation.version, observation.id)
        if name in self._ids:
            return False
        self._ids[name] = None
        if len(self._ids) > IDS_KEPT:
            self._ids.popitem(last=False)
        return True

    def _append(self, text: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rotate(self.path)
        with self.path.open("ab+") as file:
            size = file.seek(0, 2)
            try:
                file.seek(max(0, size - 1))
                if file.read(1) not in (b"", b"\n"):  # of a line that a crash cut off
                    text = b"\n" + text
                file.write(text)
                file.flush()
            except OSError:
                file.truncate(size)
                raise


def _line(model: str, observation: Observation, now: float) -> bytes:
    arrival = datetime.fromtimestamp(now, UTC)
    line = ObservationLine(
        at=arrival.isoformat(),
        ended_at=(observation.at or arrival).astimezone(UTC).isoformat(),
        model=model,
        **observation.model_dump(exclude={"at"}),
    )
    return json.dumps(asdict(line)).encode() + b"\n"


def _known_ids(log: Path) -> OrderedDict[bytes, None]:
    """Return the names of the ids in the end of a log, oldest first."""
    ids: OrderedDict[bytes, None] = OrderedDict()
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _MOST_TAIL))
            lines = stream.read(_MOST_TAIL).splitlines()
    except FileNotFoundError:
        return ids
    for text in lines[-IDS_KEPT:]:
        try:
            line = _LINE.validate_json(text)
        except ValidationError:
            continue
        if line.id is not None:
            ids[_id_name(line.model, line.version, line.id)] = None
    return ids


def _id_name(model: str, version: str, name: str) -> bytes:
    parts = json.dumps([model, version, name]).encode()
    return hashlib.blake2b(parts, digest_size=12).digest()
