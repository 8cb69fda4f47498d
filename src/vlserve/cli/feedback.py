"""feedback: which answers of shadow pairs people marked as right on the console."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table
from vlserve.cli.parameters import Group, Model, control_client, stack_settings, written_file_option
from vlserve.control.control_access import remote_access
from vlserve.control.wire.views import MarkView

_MY_FOLDER, _MY_FILE = 0o700, 0o600


def feedback(
    model: Model,
    export: Annotated[
        Path | None,
        written_file_option(
            "File to write: JSON lines with id and newest label of each request whose right label "
            "is known, and img and text of those whose input was kept; the images in FILE-images "
            "beside it. You alone can read them. Default: none."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the marks of a model's shadow pairs, and write them as training data."""
    remote = remote_access() is not None
    with control_client() as control:
        marks = control.marks(model)
    labels = [mark for mark in marks if mark.label]
    newest = {mark.request_id: mark for mark in labels}  # of marks of several pairs of versions
    if export is not None:
        _write(export, list(newest.values()), None if remote else stack_settings().state_dir)
    if as_json:
        print_json({"marks": marks, "exported": len(newest) if export else None})
        return
    right = Counter((mark.stable, mark.candidate, mark.right) for mark in marks)
    rows = [[*key, count] for key, count in sorted(right.items())]
    print_table(("STABLE", "CANDIDATE", "RIGHT", "MARKS"), rows)
    if export is not None:
        rest = len(marks) - len(labels)
        remark = f"; {rest} name no label and are left out" if rest else ""
        print_line(f"wrote {export}: {len(newest)} labels{remark}")
        if remote:
            print_line("inputs that were kept lie on the machine of the stack: export there")


def _write(export: Path, marks: Sequence[MarkView], state_dir: Path | None) -> None:
    """Write a line for each mark, and the images that were kept, each under a name that is its
    request's alone, so that what an export before wrote stays whole. ``state_dir``: where inputs
    are kept; None: on another machine."""
    from vlserve.control.captures import read_input
    from vlserve.data.data_files import write_object, written_whole
    from vlserve_worker.capture import name_of

    images = export.with_name(f"{export.stem}-images")
    with written_whole(export) as file:
        os.fchmod(file.fileno(), _MY_FILE)
        for mark in marks:
            line = {"id": mark.request_id, "label": mark.label}
            capture = read_input(state_dir, mark.model, mark.request_id) if state_dir else None
            if capture and capture.text:
                line["text"] = capture.text
            if capture and "image" in capture.images:
                images.mkdir(mode=_MY_FOLDER, exist_ok=True)
                images.chmod(_MY_FOLDER)
                image = images / Path(name_of(mark.request_id)).stem
                with written_whole(image) as image_file:
                    os.fchmod(image_file.fileno(), _MY_FILE)
                    image_file.write(capture.images["image"])
                line["img"] = f"{images.name}/{image.name}"
            write_object(file, line)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.ROLLOUT)(feedback)
