"""The forms of the console's pages, as a browser sends them: application/x-www-form-urlencoded."""

from typing import TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from vlserve.runtime.manifest import Version

MOST_FIELDS = 10


class Form(BaseModel):
    """``token``: of the session; our pages add it."""

    token: str = ""


class VersionForm(Form):
    version: Version


F = TypeVar("F", bound=Form)


async def form_of(request: Request) -> Form:
    """Return the form in the body. RequestValidationError."""
    return await _read(request, Form)


async def version_form_of(request: Request) -> VersionForm:
    """Return the form in the body, which names a version. RequestValidationError."""
    return await _read(request, VersionForm)


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
