"""predict: one request through the gateway, as any client sends it."""

from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table
from vlserve.errors import StackError
from vlserve.settings import Settings, load_settings


def request_prediction(
    settings: Settings,
    model: str,
    fields: dict[str, str],
    image: Path | None,
    version: int | None = None,
) -> dict[str, Any]:
    """The answer of the gateway; StackError with the server's own message when it is an error."""
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    headers = {"X-Api-Key": settings.gateway.api_keys[0]} if settings.gateway.api_keys else {}
    files = {"image": (image.name, image.read_bytes())} if image else None
    try:
        response = httpx.post(
            settings.gateway_url + path,
            data=fields,
            files=files,
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
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    text: Annotated[str | None, typer.Option(help="Title, question or caption.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Ask one version.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model, through the gateway."""
    fields = {} if text is None else {"text": text}
    answer = request_prediction(load_settings(), model, fields, image, version)
    if as_json:
        print_json(answer)
        return
    print_answer(answer)


def print_answer(answer: dict[str, Any]) -> None:
    """One answer for people."""
    print_line(f"{answer['model']} {answer['version']}  (request {answer['request_id']})")
    if "tags" in answer:
        print_table(("TAG", "SCORE"), [(t["tag"], f"{t['score']:.3f}") for t in answer["tags"]])
        return
    for name, value in answer.items():
        if name not in ("model", "version", "request_id"):
            print_line(f"{name}: {value}")


def add_to(app: typer.Typer) -> None:
    app.command()(predict)
