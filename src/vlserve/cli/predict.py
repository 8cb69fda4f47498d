"""predict: one request through the gateway, as any client sends it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table
from vlserve.cli.parameters import MAX_VERSION, Group, Model, file_option, text_of_a_caller
from vlserve.errors import StackDown, StackError
from vlserve.runtime.headers import API_KEY, MODEL_VERSION, REQUEST_ID
from vlserve.settings import Settings, load_settings
from vlserve.tls import trust_of

ABOUT = ("model", "version", "request_id")
"""Fields that every answer begins with."""
MAX_SHOWN_CHARS = 120
"""Of a value; --json prints longer ones, as vectors and pictures are, whole."""


def request_prediction(
    settings: Settings,
    model: str,
    fields: dict[str, str],
    files: Mapping[str, Path],
    version: int | None = None,
) -> dict[str, Any]:
    """Send one request to the gateway and return its answer.

    Args:
        settings: of the stack, for the gateway's address, API key and deadline.
        model: name of the model.
        fields: text fields of the form.
        files: files of the form, by the field that they are sent as.
        version: the version to ask; None leaves the choice to the gateway.

    Raises:
        StackError: no answer, or an error; with the server's own message where it has one.
    """
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    headers = {API_KEY: settings.gateway.api_keys[0]} if settings.gateway.api_keys else {}
    parts = {name: (file.name, file.read_bytes()) for name, file in files.items()}
    try:
        response = httpx.post(
            settings.gateway_url + path,
            data=fields,
            files=parts or None,
            headers=headers,
            timeout=settings.gateway.timeout_s + 5,
            trust_env=False,
            verify=trust_of(settings.gateway_tls),
        )
    except httpx.TransportError as error:
        raise StackDown(
            f"no answer from the gateway at {settings.gateway_url} ({error}): "
            "is the stack up? `vlserve status` shows it"
        ) from error
    except httpx.DecodingError as error:
        raise _not_the_gateway(settings, "answered") from error
    reaction = f"answered {response.status_code}"
    if response.is_success and (answer := _raw_answer(response, model)):
        return answer
    try:
        body = response.json()
        refusal = body["error"] if response.is_error else None
        message = refusal and f"{refusal['code']}: {refusal['message']}"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_the_gateway(settings, reaction) from error
    if message:
        raise StackError(message)
    if not (isinstance(body, dict) and body.keys() >= set(ABOUT)):
        raise _not_the_gateway(settings, reaction)
    return body


def _raw_answer(response: httpx.Response, model: str) -> dict[str, Any] | None:
    """Return what an adopted version said, whose answers have a form of their own, under
    ``answer``; None for an answer of ours."""
    version = response.headers.get(MODEL_VERSION, "")
    try:
        body: Any = response.json()
    except (ValueError, RecursionError):
        body = response.text
    if not version.isdecimal() or (isinstance(body, dict) and body.keys() >= set(ABOUT)):
        return None
    request_id = response.headers.get(REQUEST_ID, "")
    return {"model": model, "version": int(version), "request_id": request_id, "answer": body}


def _not_the_gateway(settings: Settings, reaction: str) -> StackError:
    return StackError(
        f"{settings.gateway_url} {reaction}, and not as the gateway does: does its port "
        "(gateway.port) belong to another program?"
    )


def predict(
    model: Model,
    image: Annotated[
        Path | None,
        file_option("Image: JPEG, PNG, WebP or GIF. Default: none."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            callback=text_of_a_caller, help="Title, question, phrase or caption. Default: none."
        ),
    ] = None,
    image2: Annotated[
        Path | None,
        file_option("Second image, for task reason. Default: none."),
    ] = None,
    features: Annotated[
        Path | None,
        file_option("Visual features, a .npy file with a row a region. Default: none."),
    ] = None,
    boxes: Annotated[
        Path | None,
        file_option(
            "Boxes of the features, a .npy file with a row x1, y1, x2, y2 a region, as "
            "fractions of width and height. Default: none."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of answers, of tasks that rank them. Default: the task's own.",
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_VERSION, help="Version to ask. Default: the gateway chooses by weight."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send one request to a model of any task through the gateway."""
    fields = {} if text is None else {"text": text}
    if top_k is not None:
        fields["top_k"] = str(top_k)
    file_fields = {"image": image, "image2": image2, "features": features, "boxes": boxes}
    files = {name: file for name, file in file_fields.items() if file is not None}
    answer = request_prediction(load_settings(), model, fields, files, version)
    if as_json:
        print_json(answer)
        return
    print_answer(answer)


def print_answer(answer: Mapping[str, Any]) -> None:
    """Print one answer for people: lists of scored items as tables, all else a line each."""
    print_line(f"{answer['model']} {answer['version']}  (request {answer['request_id']})")
    for name, value in answer.items():
        if name in ABOUT or value is None:
            continue
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            columns = list(value[0])
            rows = [[shown(row.get(column)) for column in columns] for row in value]
            print_table([column.upper() for column in columns], rows)
        elif isinstance(value, Mapping):
            print_line(
                f"{name}: {', '.join(f'{key} {shown(part)}' for key, part in value.items())}"
            )
        else:
            print_line(f"{name}: {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as text: three decimals, long values cut."""
    if isinstance(value, float):
        return f"{value:.3f}"
    is_list = isinstance(value, list)
    text = f"[{', '.join(shown(item) for item in value)}]" if is_list else str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.TEST)(predict)
