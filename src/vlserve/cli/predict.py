"""predict: one request through the gateway, as any client sends it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table
from vlserve.errors import StackError
from vlserve.settings import Settings, load_settings

ABOUT = ("model", "version", "request_id")
"""What every answer begins with."""
MAX_SHOWN_CHARS = 120
"""Of a value; vectors and pictures are longer, and whole with --json."""
File = typer.Option(exists=True, dir_okay=False)


def request_prediction(
    settings: Settings,
    model: str,
    fields: dict[str, str],
    files: Mapping[str, Path],
    version: int | None = None,
) -> dict[str, Any]:
    """The answer of the gateway; StackError with the server's own message when it is an error.
    ``files``: by the field that they are sent as."""
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    headers = {"X-Api-Key": settings.gateway.api_keys[0]} if settings.gateway.api_keys else {}
    parts = {name: (file.name, file.read_bytes()) for name, file in files.items()}
    try:
        response = httpx.post(
            settings.gateway_url + path,
            data=fields,
            files=parts or None,
            headers=headers,
            timeout=settings.gateway.timeout_s + 5,
            trust_env=False,
        )
    except httpx.TransportError as error:
        raise StackError(
            f"no answer from the gateway at {settings.gateway_url} ({error}): "
            "is the stack up? `vlserve status` tells"
        ) from error
    try:
        body = dict(response.json())
        said = body["error"] if response.is_error else None
        refusal = said and f"{said['code']}: {said['message']}"
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{settings.gateway_url} answered {response.status_code} and not as the gateway does: "
            "does its port belong to another program?"
        ) from error
    if refusal:
        raise StackError(refusal)
    return body


def predict(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    image: Annotated[Path | None, File] = None,
    text: Annotated[str | None, typer.Option(help="Title, question, phrase or caption.")] = None,
    image2: Annotated[Path | None, File] = None,
    features: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help=".npy, a row a region.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help=".npy, x1 y1 x2 y2 from 0 to 1 a region."),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Ask one version.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model, through the gateway, whatever its task is."""
    fields = {} if text is None else {"text": text}
    given = {"image": image, "image2": image2, "features": features, "boxes": boxes}
    files = {name: file for name, file in given.items() if file is not None}
    answer = request_prediction(load_settings(), model, fields, files, version)
    if as_json:
        print_json(answer)
        return
    print_answer(answer)


def print_answer(answer: Mapping[str, Any]) -> None:
    """One answer for people: lists of scored things as tables, all else a line each."""
    print_line(f"{answer['model']} {answer['version']}  (request {answer['request_id']})")
    for name, value in answer.items():
        if name in ABOUT or value is None:
            continue
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            columns = list(value[0])
            rows = [[shown(row.get(column)) for column in columns] for row in value]
            print_table([column.upper() for column in columns], rows)
        elif isinstance(value, Mapping):
            print_line(f"{name}: {', '.join(f'{key} {shown(one)}' for key, one in value.items())}")
        else:
            print_line(f"{name}: {shown(value)}")


def shown(value: Any) -> str:
    """Three decimals; long values are cut."""
    if isinstance(value, float):
        return f"{value:.3f}"
    listed = isinstance(value, list)
    text = f"[{', '.join(shown(one) for one in value)}]" if listed else str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def add_to(app: typer.Typer) -> None:
    app.command()(predict)
