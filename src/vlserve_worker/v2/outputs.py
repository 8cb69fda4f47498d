"""What a V2 client gets of each task's answers: docs/v2.md shows this table.

A plain answer is an object of JSON, whose fields docs/tasks.md lists. A task that is not here, as
one of the user's own, has one output, ``answer``: that object.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlserve_worker.v2.messages import BOOL, BYTES, FP32, NUMBERS, Data, Tensor

Answer = Mapping[str, Any]
"""Field -> value, of one item's plain answer."""

ERRORS = "errors"
"""With the parameter ``partial``: what is wrong with each item; empty of an item that has an
answer."""

_ABOUT = ("model", "version", "request_id")
_NOWHERE = {"x": -1.0, "y": -1.0}


@dataclass(frozen=True)
class Output:
    """One output. ``dims``: how many axes it has after that of the items, of which each is as long
    as the longest of the request: shorter ones are filled up with nothing, "" or 0. ``of``: its
    value in an answer, None where that has none; no item of a model may have one."""

    name: str
    datatype: str
    dims: int
    of: Callable[[Answer], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that metadata say: -1 is an axis of any length."""
        return (-1,) * (1 + self.dims)


def _field(name: str) -> Callable[[Answer], Any]:
    return lambda answer: answer.get(name)


def _each(field: str, name: str) -> Callable[[Answer], Any]:
    """Return what picks a value out of each object of a list; None where none has it."""

    def values(answer: Answer) -> list[Any] | None:
        rows = answer.get(field)
        if rows is None or (rows and all(row.get(name) is None for row in rows)):
            return None
        return [row.get(name) for row in rows]

    return values


def _peak(answer: Answer) -> Any:
    if "peak" not in answer:
        return None
    peak = answer["peak"] or _NOWHERE
    return [peak["x"], peak["y"]]


def _whole(answer: Answer) -> str:
    fields = {name: value for name, value in answer.items() if name not in _ABOUT}
    return json.dumps(fields, ensure_ascii=False)


OUTPUTS: Mapping[str, Sequence[Output]] = {
    "tag": (
        Output("tag", BYTES, 1, _each("tags", "tag")),
        Output("score", FP32, 1, _each("tags", "score")),
    ),
    "caption": (
        Output("caption", BYTES, 0, _field("caption")),
        Output("log_prob", FP32, 0, _field("log_prob")),
    ),
    "answer": (
        Output("answer", BYTES, 1, _each("answers", "answer")),
        Output("score", FP32, 1, _each("answers", "score")),
    ),
    "embed": (Output("embedding", FP32, 1, _field("embedding")),),
    "retrieve": (
        Output("id", BYTES, 1, _each("results", "id")),
        Output("score", FP32, 1, _each("results", "score")),
        Output("cosine", FP32, 1, _each("results", "cosine")),
        Output("ranked_by", BYTES, 0, _field("ranked_by")),
    ),
    "match": (
        Output("probability", FP32, 0, _field("probability")),
        Output("itm_score", FP32, 0, _field("itm_score")),
        Output("cosine", FP32, 0, _field("cosine")),
    ),
    "ground": (
        Output("box", FP32, 2, _each("regions", "box")),
        Output("score", FP32, 1, _each("regions", "score")),
        Output("probability", FP32, 0, _field("probability")),
        Output("similarity", FP32, 0, _field("similarity")),
        Output("peak", FP32, 1, _peak),
        Output("grid", FP32, 2, _field("grid")),
        Output("heat_map", BYTES, 0, _field("heat_map")),
        Output("overlay", BYTES, 0, _field("overlay")),
    ),
    "entail": (
        Output("label", BYTES, 1, lambda answer: [*answer["scores"]]),
        Output("score", FP32, 1, lambda answer: [*answer["scores"].values()]),
    ),
    "reason": (
        Output("answer", BOOL, 0, _field("answer")),
        Output("score", FP32, 0, _field("score")),
    ),
}
_OF_OTHERS = (Output("answer", BYTES, 0, _whole),)


def outputs_of(task: str) -> Sequence[Output]:
    """Return the outputs of a task's answers."""
    return OUTPUTS.get(task, _OF_OTHERS)


def join_answers(task: str, answers: Sequence[Answer | None]) -> list[Tensor]:
    """Return the outputs of a request's items, whose answers are given in order; None: an item has
    none. What no item has is left out."""
    return [
        tensor for output in outputs_of(task) if (tensor := _joined(output, answers)) is not None
    ]


def _joined(output: Output, answers: Sequence[Answer | None]) -> Tensor | None:
    values = [None if answer is None else output.of(answer) for answer in answers]
    present_values = [value for value in values if value is not None]
    if not present_values and any(answer is not None for answer in answers):
        return None
    inner = _longest(present_values, output.dims)
    elements: list[Any] = []
    for value in values:
        _fill(elements, value, inner)
    return Tensor(output.name, output.datatype, (len(values), *inner), _data(output, elements))


def _longest(values: Sequence[Any], dims: int) -> tuple[int, ...]:
    """Return the most entries on each of ``dims`` axes."""
    if not dims:
        return ()
    rows = [row for value in values if value is not None for row in value]
    return max((len(value) for value in values if value is not None), default=0), *_longest(
        rows, dims - 1
    )


def _fill(elements: list[Any], value: Any, shape: tuple[int, ...]) -> None:
    """Append the elements of ``value``, and None for those that are not there."""
    if not shape:
        elements.append(value)
        return
    rows = [] if value is None else value
    for at in range(shape[0]):
        _fill(elements, rows[at] if at < len(rows) else None, shape[1:])


def _data(output: Output, elements: Sequence[Any]) -> Data:
    if output.datatype == BYTES:
        return [
            b"" if element is None else str(element).encode("utf-8", "surrogatepass")
            for element in elements
        ]
    return np.array([element or 0 for element in elements], dtype=NUMBERS[output.datatype])
