"""data: from videos and tables to data files, which are looked at and split."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlserve.data.convert import Converted

from vlserve.cli.bad_lines import print_bad_kinds
from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import (
    Frame,
    Group,
    Strict,
    file_argument,
    file_option,
    files_argument,
    finite,
    folder_option,
    written_file_option,
)
from vlserve.processor import usable_cores

data = typer.Typer(
    no_args_is_help=True,
    help="Make data files of videos and tables, look at them, split them.",
    rich_markup_mode="markdown",
)


@data.command()
def frames(
    input: Annotated[
        list[str],
        typer.Argument(help="Videos (mp4, m4v, mkv, webm, mov, avi), folders of them, or globs."),
    ],
    output: Annotated[
        Path, folder_option("Folder to write: frames.jsonl and images/, a JPEG a video.")
    ],
    frame: Frame = "first",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of videos decoded at once. Default: cores that may be used."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a cover frame of each video.

    A video without a readable frame gets a line with its error.
    """
    from vlserve.data.frames import write_frames
    from vlserve_worker.video import FrameChoice

    with progress(f"decoding {', '.join(input)}") as show:
        result = write_frames(
            input, output, FrameChoice.parse(frame), workers or usable_cores(), show
        )
    if as_json:
        print_json(result)
        return
    for code, count in result.errors.items():
        print_line(f"{count} videos without a frame: {code}")
    print_line(
        f"{result.videos - result.errors.total()} of {result.videos} videos, {result.seconds} s"
    )
    print_line(f"wrote {result.output}")


def _label_mapping(pairs: str) -> str:
    from vlserve.data.fields import LabelMapping

    try:
        LabelMapping.parse(pairs)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return pairs


@data.command("from-csv")
def from_csv(
    input: Annotated[
        list[Path],
        files_argument("CSV files, or .tsv, in UTF-8; the first line names the columns."),
    ],
    output: Annotated[Path, written_file_option("File of JSON lines to write.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="Column of a field, as text=Utterance, or a text with columns in braces, as "
            "img={id}.jpg. Default: the column of the field's name. May be given several times.",
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            metavar="LABEL=NEW,…",
            callback=_label_mapping,
            help="New names of labels, as neutral=drop,negative=0; drop leaves the items out. "
            "Others stay as they are.",
        ),
    ] = "",
    keep: Annotated[
        str, typer.Option(help="Columns that items keep under their names, commas between.")
    ] = "",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Make JSON lines of CSV files: columns become id, img, text and label.

    A record that cannot be read is left out and named by its line; the others are kept.
    """
    from vlserve.data.convert import from_csv as convert
    from vlserve.data.fields import LabelMapping

    result = convert(
        input,
        output,
        _columns(column or []),
        keep=[name for name in keep.split(",") if name],
        labels=LabelMapping.parse(labels),
        strict=strict,
    )
    _print_converted(result, as_json)


@data.command("from-repr")
def from_repr(
    input: Annotated[
        list[Path], files_argument("Files with a Python dict a line, as str(dict) writes it.")
    ],
    output: Annotated[Path, written_file_option("File of JSON lines to write.")],
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Make JSON lines of lines that Python's str(dict) wrote.

    They are read as literals, and nothing in them is run.
    """
    from vlserve.data.convert import from_repr as convert

    _print_converted(convert(input, output, strict=strict), as_json)


@data.command()
def look(
    input: Annotated[list[Path], files_argument("Data files, JSON lines, such as train and val.")],
    output: Annotated[
        Path, folder_option("Folder to write: look.html, look.json, and lists beside them.")
    ],
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length at which texts will be cut: says how many are longer. Default: none.",
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        file_option(
            "Vocabulary of WordPiece (vocab.txt): lengths of texts are in its tokens. Default: in "
            "characters."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        file_option(
            "Answers of a tagger that was not trained on these items, as `vlserve batch --joined` "
            "writes them, to show labels that look wrong. Default: none."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of images decoded at once. Default: cores that may be used."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Augmentation of training, e.g. albef: the page shows items that it has changed. "
            "Default: none."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in data files: labels, texts, images, near-duplicates, doubtful labels.

    Each line and each image is read once.
    """
    from vlserve.data.look.lengths import characters, word_pieces
    from vlserve.data.look.page import render_page
    from vlserve.data.look.report import PAGE, look_at

    unit, lengths = (
        ("characters", characters) if vocabulary is None else ("tokens", word_pieces(vocabulary))
    )
    with progress(f"looking at {', '.join(path.name for path in input)}") as show:
        result = look_at(
            input, output,
            lengths=lengths, unit=unit, max_length=max_length, predictions=predictions,
            workers=workers or usable_cores(), show=show,
        )  # fmt: skip
        page = output / PAGE
        page.write_text(render_page(result, augment), encoding="utf-8")
    if as_json:
        print_json(result.facts)
        return
    for file in result.survey.files:
        print_bad_kinds(file.left_out.kinds(), file.left_out.count)
    for kind in result.survey.images.unreadable.kinds():
        for bad in kind.shown:
            print_line(f"unreadable image: {bad.file}, line {bad.line}: {bad.reason}")
    _print_facts(result.facts)
    print_line(f"wrote {page}")


def _print_facts(facts: Mapping[str, Any]) -> None:
    text, images, near = facts["text"], facts["images"], facts["near_duplicates"]
    rows = [
        (Path(path).name, file["lines"], len(file["labels"]), file["unlabelled"])
        for path, file in facts["files"].items()
    ]
    print_table(("FILE", "LINES", "LABELS", "UNLABELLED"), rows)
    print_line(
        f"texts: median {text['p50']} {text['unit']}, p99 {text['p99']}, longest {text['max']}"
    )
    if text["cut_share"] is not None:
        print_line(f"a max_length of {text['max_length']} cuts {text['cut_share']:.2%} of them")
    print_line(f"images: {images['readable']} can be read, {images['unreadable']} cannot")
    print_line(
        f"near-duplicates: {near['groups']} groups of {near['images']} images, "
        f"{near['groups_across_files']} of them in more than one file"
    )
    if facts["label_issues"] is not None:
        issues = facts["label_issues"]
        print_line(f"labels that look wrong: {issues['issues']} of {issues['compared']}")


@data.command()
def split(
    input: Annotated[Path, file_argument("Data file, JSON lines.")],
    output: Annotated[
        Path, folder_option("Folder to write: train.jsonl, val.jsonl and, where asked, test.jsonl.")
    ],
    group: Annotated[
        str | None,
        typer.Option(
            help="Field whose value stays in one file, such as channel. Default: none, each line "
            "by itself."
        ),
    ] = None,
    val: Annotated[
        float, typer.Option(min=0.0, max=0.9, callback=finite, help="Share of val.jsonl.")
    ] = 0.2,
    test: Annotated[
        float, typer.Option(min=0.0, max=0.9, callback=finite, help="Share of test.jsonl.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Split a data file into parts, in each of which a label has the same share.

    The same file, options and seed give the same split.
    """
    from vlserve.data.split import TEST, TRAIN, VAL, split_file

    if not 0 < val + test < 1:
        raise typer.BadParameter(
            "together with --test more than 0, less than 1", param_hint="--val"
        )
    shares = {TRAIN: 1 - val - test, VAL: val, TEST: test}
    result = split_file(
        input,
        output,
        {name: share for name, share in shares.items() if share},
        group=group,
        seed=seed,
        strict=strict,
    )
    if as_json:
        print_json(
            {
                "groups": result.groups,
                "items": result.items,
                "labels": result.labels,
                "left_out": result.left_out.count,
            }
        )
        return
    print_bad_kinds(result.left_out.kinds(), result.left_out.count)
    names = sorted({label for counts in result.labels.values() for label in counts})
    print_table(
        ("LABEL", *result.files),
        [(label, *(result.labels[name][label] for name in result.files)) for label in names],
    )
    counts = ", ".join(f"{result.items[name]} in {path}" for name, path in result.files.items())
    print_line(f"{result.groups} groups: {counts}")


def _columns(pairs: list[str]) -> Mapping[str, str]:
    columns = {}
    for pair in pairs:
        field, sign, column = pair.partition("=")
        if not (field and sign and column):
            raise typer.BadParameter(f"{pair} is not FIELD=COLUMN", param_hint="--column")
        columns[field] = column
    return columns


def _print_converted(result: "Converted", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "output": result.output,
                "written": result.written,
                "labels": result.labels,
                "dropped": result.dropped,
                "left_out": result.left_out.count,
            }
        )
        return
    print_bad_kinds(result.left_out.kinds(), result.left_out.count)
    for label in result.unseen:
        print_line(f"no line has the label {label} of --labels")
    for label, count in result.dropped.items():
        print_line(f"{count} dropped: {label}")
    if result.labels:
        print_table(("LABEL", "ITEMS"), result.labels.most_common())
    print_line(f"wrote {result.written} lines to {result.output}")


def add_to(app: typer.Typer) -> None:
    app.add_typer(data, name="data", rich_help_panel=Group.BUILD)
