"""demo: a small tagger, trained, released and queried on the stack that is up."""

import os

import typer

from vlserve.cli.output import AsJson, print_json, print_line, progress
from vlserve.cli.parameters import Group, refuse_other_machine
from vlserve.cli.predict import print_answer, request_prediction
from vlserve.extras import require_extras
from vlserve.settings import load_settings


def demo(as_json: AsJson = False) -> None:
    """Train, release and query a demo tagger. Version 1 is then stable and version 2 ready."""
    require_extras("cpu", "train")
    from vlserve.control.client import ControlClient
    from vlserve.demo import MODEL, VERSIONS, release_demo

    refuse_other_machine("demo")
    settings = load_settings()
    with ControlClient.of(settings) as control, progress("preparing the demo") as show:
        item = release_demo(settings, control, show)
    answer = request_prediction(settings, MODEL, {"text": item.text}, {"image": item.image})
    if as_json:
        print_json({"image": item.image, "text": item.text, "label": item.label, "answer": answer})
        return
    image = os.path.relpath(item.image)
    print_line(f"\ncover {image}\ntitle {item.text}\nlabel {item.label}")
    print_answer(answer)
    old, new = VERSIONS
    print_line(
        f"""
What to do next (with .venv/bin on the PATH, or .venv/bin/vlserve …):
  vlserve status                                     versions and their weights
  vlserve console                                    the same in a browser, and more
  vlserve predict {MODEL} --image {image} --text '{item.text}'
  vlserve release {MODEL} {new} --now                   all traffic to version {new}
  vlserve stress {MODEL} --users 4 --duration 20     load it and judge it
  vlserve rollback {MODEL}                           back to version {old}
  vlserve down                                       stop everything"""
    )


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.STACK)(demo)
