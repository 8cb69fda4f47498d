"""Items of the tasks, one JSON object a line; docs/evaluation.md shows them all.

Paths are relative to the file's folder. A line that cannot be used is left out and reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vlserve.training.json_lines import BadLine, as_text, numbered_lines, parse_object


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds a lone surrogate at character {error.start}") from error
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_names(value: Any) -> Any:
    """A list of names; whole numbers are names too."""
    return (
        [as_text(name) for name in value] if isinstance(value, list) else _as_list(as_text(value))
    )


Text = Annotated[str, BeforeValidator(_encodable)]
Filled = Annotated[str, BeforeValidator(_encodable), Field(min_length=1)]
Name = Annotated[str, BeforeValidator(_encodable), BeforeValidator(as_text), Field(min_length=1)]
"""An id or a label, which may be a whole number."""
Fraction = Annotated[float, Field(ge=0, le=1)]


def _has_an_area(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners
    if x1 >= x2 or y1 >= y2:
        raise ValueError("x1 < x2 and y1 < y2 does not hold")
    return corners


Corners = Annotated[tuple[Fraction, Fraction, Fraction, Fraction], AfterValidator(_has_an_area)]
"""x1, y1, x2, y2 as fractions of the image's width and height."""
Boxes = tuple[Corners, ...] | Filled
"""One a region, or the name of a .npy file of them."""


class Look(BaseModel):
    """An image, or features of its regions with their boxes; the files' names."""

    model_config = ConfigDict(frozen=True)

    img: str | None = None
    features: str | None = None
    boxes: Boxes | None = None


class TaskItem(BaseModel):
    """What items of all tasks have. Other keys are ignored."""

    model_config = ConfigDict(frozen=True)

    id: Name
    img: Filled | None = None
    features: Filled | None = None
    boxes: Boxes | None = None

    @model_validator(mode="after")
    def _shows_something(self) -> "TaskItem":
        if self.img is None and self.features is None:
            raise ValueError("neither img nor features")
        return self

    @property
    def look(self) -> Look:
        return Look(img=self.img, features=self.features, boxes=self.boxes)


class AnswerItem(TaskItem):
    """A question, and every answer that counts; ten, where ten people were asked."""

    text: Text
    label: Annotated[tuple[Text, ...], BeforeValidator(_as_names), Field(min_length=1)]


class EntailItem(TaskItem):
    """A sentence, and what the image makes of it."""

    text: Text
    label: Name


class ReasonItem(TaskItem):
    """A sentence about two images, and whether it is true."""

    text: Text
    label: bool
    img2: Filled | None = None
    features2: Filled | None = None
    boxes2: Boxes | None = None

    @model_validator(mode="after")
    def _shows_two(self) -> "ReasonItem":
        if self.img2 is None and self.features2 is None:
            raise ValueError("neither img2 nor features2")
        return self

    @property
    def look2(self) -> Look:
        return Look(img=self.img2, features=self.features2, boxes=self.boxes2)


class CaptionItem(TaskItem):
    """What people wrote about the image."""

    captions: Annotated[tuple[Text, ...], BeforeValidator(_as_list), Field(min_length=1)]


class PairedItem(TaskItem):
    """Texts that belong to the image: ``captions``, or one ``text`` a line."""

    captions: Annotated[tuple[Text, ...], BeforeValidator(_as_list)] = ()
    text: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "PairedItem":
        if not self.texts:
            raise ValueError("neither captions nor text")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        return self.captions or (() if self.text is None else (self.text,))


class GroundItem(TaskItem):
    """A phrase, and the box of what it means."""

    text: Text
    box: Corners


AnyItem = TypeVar("AnyItem", bound=TaskItem)


@dataclass(frozen=True)
class TaskFile(Generic[AnyItem]):
    """The usable items of a file, by the number of their line, and what was left out."""

    path: Path
    by_line: Mapping[int, AnyItem]
    bad_lines: tuple[BadLine, ...]

    @property
    def used(self) -> int:
        return len(self.by_line)

    @cached_property
    def items(self) -> tuple[AnyItem, ...]:
        return tuple(self.by_line.values())

    def without(self, reasons: Mapping[int, str]) -> "TaskFile[AnyItem]":
        """Leave out more lines: line number -> reason."""
        more = [BadLine(str(self.path), line, reason) for line, reason in reasons.items()]
        return TaskFile(
            self.path,
            {line: item for line, item in self.by_line.items() if line not in reasons},
            tuple(sorted((*self.bad_lines, *more), key=lambda bad: bad.line)),
        )


def read_task_file(path: Path, schema: type[AnyItem]) -> TaskFile[AnyItem]:
    """DataError if the file cannot be read. What its items name is not opened here."""
    items: dict[int, AnyItem] = {}
    reasons: dict[int, str] = {}
    line_of_id: dict[str, int] = {}
    for number, raw in numbered_lines(path):
        try:
            item = schema.model_validate(parse_object(raw))
        except ValidationError as error:
            reasons[number] = _said_of(error)
            continue
        except ValueError as error:
            reasons[number] = str(error)
            continue
        if item.id in line_of_id:
            reasons[number] = f"id {item.id} is on line {line_of_id[item.id]} already"
            continue
        line_of_id[item.id] = number
        items[number] = item
    return TaskFile(path, items, ()).without(reasons)


def _said_of(error: ValidationError) -> str:
    return "; ".join(
        ": ".join([*(str(part) for part in item["loc"][:1]), item["msg"]])
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )
