"""feedback: which answers of shadow pairs people marked as right on the console."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table
from vlserve.cli.parameters import Group, Model, control_client, stack_settings, written_file_option
from vlserve.control.wire.views import MarkView


def feedback(
    model: Model,
    export: Annotated[
        Path | None,
        written_file_option(
            "File to write: JSON lines with id and label of each pair whose right label is known, "
            "and img and text of those whose input was kept; the images in FILE-images beside it. "
            "Default: none."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the marks of a model's shadow pairs, and write them as training data."""
    with control_client() as control:
        marks = control.marks(model)
    labelled = [mark for mark in marks if mark.label]
    if export is not None:
        _write(export, labelled, stack_settings().state_dir)
    if as_json:
        print_json({"marks": marks, "exported": len(labelled) if export else None})
        return
    right = Counter((mark.stable, mark.candidate, mark.right) for mark in marks)
    rows = [[*key, count] for key, count in sorted(right.items())]
    print_table(("STABLE", "CANDIDATE", "RIGHT", "MARKS"), rows)
    if export is not None:
        left_out = len(marks) - len(labelled)
        said = f"; {left_out} name no label and are left out" if left_out else ""
        print_line(f"wrote {export}: {len(labelled)} labels{said}")


def _write(export: Path, marks: Sequence[MarkView], state_dir: Path) -> None:
    """Write a line for each mark, and the images that were kept."""
    from vlserve.control.captures import read_input
    from vlserve.data.data_files import write_object, written_whole

    images = export.with_name(f"{export.stem}-images")
    with written_whole(export) as file:
        for number, mark in enumerate(marks):
            line = {"id": mark.request_id, "label": mark.label}
            kept = read_input(state_dir, mark.model, mark.request_id)
            if kept and kept.text:
                line["text"] = kept.text
            if kept and "image" in kept.images:
                images.mkdir(exist_ok=True)
                image = images / f"{number:06d}"  # an id may hold what no file name may
                image.write_bytes(kept.images["image"])
                line["img"] = f"{images.name}/{image.name}"
            write_object(file, line)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.ROLLOUT)(feedback)
