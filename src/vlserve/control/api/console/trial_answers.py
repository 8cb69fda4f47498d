"""An answer to a trial as what the console draws: bars, boxes, pictures, texts, times. Pure."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlserve.control.domain import EngineAnswer

MOST_BARS = 20
MOST_BOXES = 20
MAX_SHOWN_CHARS = 300
"""Of a text or a value."""
_ABOUT = ("model", "version", "request_id")
_PICTURES = ("heat_map", "overlay")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_STAGE = re.compile(r"\s*([A-Za-z0-9_-]{1,40})\s*;\s*dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*")


@dataclass(frozen=True)
class Bar:
    """One scored entry of an answer, as a tag. ``length``: from 0 to 1, None where the score has
    other bounds."""

    name: str
    score: float
    length: float | None


@dataclass(frozen=True)
class Box:
    """One region, as fractions of width and height."""

    x: float
    y: float
    width: float
    height: float
    score: float


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline, with its time for the whole batch in ms."""

    name: str
    ms: float


@dataclass(frozen=True)
class TrialAnswer:
    """What one version said.

    ``error``: the error in its place, as CODE: MESSAGE. ``pictures``: field -> a PNG as base64.
    ``peak``: x and y as fractions. ``values``: all else, as text.
    """

    version: int
    request_id: str = ""
    error: str = ""
    bars: tuple[Bar, ...] = ()
    boxes: tuple[Box, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    peak: tuple[float, float] | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


def read_answer(version: int, answer: EngineAnswer) -> TrialAnswer:
    """Read what a version said; what is no answer of a task becomes an error."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        text = answer.body.decode("utf-8", "replace")
        return TrialAnswer(version, error=f"{answer.status}: {_shown(text)}")
    request_id = _shown(content.get("request_id", ""))
    detail = content.get("error")
    if isinstance(detail, dict) or answer.status >= 400:
        error = detail if isinstance(detail, dict) else content
        code, message = error.get("code", answer.status), error.get("message", "")
        return TrialAnswer(version, request_id, error=f"{_shown(code)}: {_shown(message)}")
    fields = {name: value for name, value in content.items() if name not in _ABOUT}
    drawings = {name for name, value in fields.items() if _is_drawn(name, value)}
    return TrialAnswer(
        version,
        request_id,
        bars=tuple(_bars(fields))[:MOST_BARS],
        boxes=tuple(_boxes(fields.get("regions")))[:MOST_BOXES],
        pictures={name: fields[name] for name in _PICTURES if _is_png(fields.get(name))},
        peak=_peak(fields.get("peak")),
        values={
            name: _shown(value)
            for name, value in fields.items()
            if name not in drawings and value is not None
        },
        stages=read_stages(answer.timing),
    )


def read_stages(timing: str) -> tuple[Stage, ...]:
    """Return the stages in a Server-Timing header (https://www.w3.org/TR/server-timing/)."""
    matches = (_STAGE.fullmatch(part) for part in timing.split(",")[:50])
    return tuple(Stage(each[1], float(each[2])) for each in matches if each)


def _is_drawn(name: str, value: Any) -> bool:
    if name == "scores":
        return isinstance(value, dict)
    is_scored = isinstance(value, list) and bool(value) and _entry(value[0]) is not None
    return is_scored or name in (*_PICTURES, "peak", "grid", "regions")


def _bars(fields: Mapping[str, Any]) -> Iterator[Bar]:
    """Yield the entries of lists of named scores, and of the scores of labels."""
    for value in fields.values():
        for entry in value if isinstance(value, list) else ():
            pair = _entry(entry)
            if pair is not None:
                yield _bar(*pair)
    scores = fields.get("scores")
    for name, score in scores.items() if isinstance(scores, dict) else ():
        if _is_number(score):
            yield _bar(name, score)


def _entry(entry: Any) -> tuple[str, float] | None:
    """Return the name and the score of an entry; None of what has not both."""
    if not isinstance(entry, dict) or not _is_number(entry.get("score")):
        return None
    name = next((value for value in entry.values() if isinstance(value, str)), None)
    return None if name is None else (name, entry["score"])


def _bar(name: str, score: float) -> Bar:
    return Bar(_shown(name), score, score if 0 <= score <= 1 else None)


def _boxes(regions: Any) -> Iterator[Box]:
    for region in regions if isinstance(regions, list) else ():
        box = region.get("box") if isinstance(region, dict) else None
        if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
            left, top, right, bottom = box
            score = region.get("score", 0.0)
            yield Box(
                left,
                top,
                max(0.0, right - left),
                max(0.0, bottom - top),
                score if _is_number(score) else 0.0,
            )


def _peak(peak: Any) -> tuple[float, float] | None:
    if isinstance(peak, dict) and _is_number(peak.get("x")) and _is_number(peak.get("y")):
        return peak["x"], peak["y"]
    return None


def _is_png(value: Any) -> bool:
    return isinstance(value, str) and _BASE64.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # JSON's integers have no limit


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
