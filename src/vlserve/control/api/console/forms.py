"""The forms of the console's pages, as a browser sends them: application/x-www-form-urlencoded."""

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import anyio
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from vlserve.control.domain import Right
from vlserve.control.judge.policy import Minimum
from vlserve.control.named_keys import MAX_KEY_CHARS
from vlserve.runtime.manifest import MAX_LABEL_CHARS, Version

MOST_FIELDS = 20
LOGIN_S = 10.0
"""Within which a form with a key must have come."""


MINIMUM = tuple(Minimum.model_fields)


def _numbers(text: object) -> object:
    """Return the parts of a text with commas in it."""
    if not isinstance(text, str):
        return text
    return [part.strip() for part in text.split(",")] if text.strip() else None


def _given(text: object) -> object:
    return None if text == "" else text


T = TypeVar("T")
Given = Annotated[T | None, BeforeValidator(_given)]
"""A value, or None where the field is empty."""


class Form(BaseModel):
    """``token``: of the session; our pages add it."""

    token: str = ""


class VersionForm(Form):
    version: Version


class StartForm(VersionForm):
    """A rollout's own entries of rollout.yaml; what is left out, or empty, is as the file says.
    ``weights``: numbers with commas between them; ``candidate`` to ``pairs``: of ``minimum``, which
    a form brings together or not at all."""

    weights: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers)] = None
    hold_s: Given[float] = None
    shadow_percent: Given[int] = None
    keep_s: Given[float] = None
    unit: Given[str] = None
    recovery: Given[str] = None
    candidate: Given[int] = None
    stable: Given[int] = None
    units: Given[int] = None
    pairs: Given[int] = None

    def changes(self) -> dict[str, Any]:
        """Return the entries as `load_policy` takes them."""
        entries = self.model_dump(exclude={"token", "version"}, exclude_none=True)
        minimum = {name: entries.pop(name) for name in MINIMUM if name in entries}
        return entries | ({"minimum": minimum} if minimum else {})


class RollbackForm(Form):
    """``version``: None for the stable version before."""

    version: Given[Version] = None


class MarkForm(Form):
    """``right_label``: the right one where neither is. ``label``, ``kind``: what the page was
    filtered by."""

    request_id: str
    stable: Version
    candidate: Version
    right: Right
    right_label: str = Field(default="", max_length=MAX_LABEL_CHARS)
    label: str = ""
    kind: str = ""


class KeyForm(Form):
    key: str = Field(max_length=MAX_KEY_CHARS, repr=False)


F = TypeVar("F", bound=Form)


async def form_of(request: Request) -> Form:
    """Return the form in the body. RequestValidationError."""
    return await _read(request, Form)


async def version_form_of(request: Request) -> VersionForm:
    """Return the form in the body, which names a version. RequestValidationError."""
    return await _read(request, VersionForm)


async def rollback_form_of(request: Request) -> RollbackForm:
    """Return the form in the body, which may name a version. RequestValidationError."""
    return await _read(request, RollbackForm)


async def start_form_of(request: Request) -> StartForm:
    """Return the form in the body, which starts a rollout. RequestValidationError."""
    return await _read(request, StartForm)


async def key_form_of(request: Request) -> KeyForm:
    """Return the form in the body, which has a key. RequestValidationError; 408 where it does not
    come in time: anybody may send one."""
    with anyio.move_on_after(LOGIN_S):
        return await _read(request, KeyForm)
    raise HTTPException(408, f"the key did not come within {LOGIN_S:g} s")


async def mark_form_of(request: Request) -> MarkForm:
    """Return the form in the body, which says which answer is right. RequestValidationError."""
    return await _read(request, MarkForm)


async def _read(request: Request, kind: type[F]) -> F:
    body = await request.body()  # Door bounds it
    try:
        fields = dict(parse_qsl(body.decode(), max_num_fields=MOST_FIELDS))
        return kind.model_validate(fields)
    except ValidationError as error:
        items = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(items) from error
    except ValueError as error:
        item = {"loc": ("body",), "msg": f"it is no form ({error})", "input": None}
        raise RequestValidationError([item]) from error
