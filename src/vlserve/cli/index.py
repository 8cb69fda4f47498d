"""index: a corpus, embedded by an archive, becomes an archive that finds its items."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlserve.cli.bad_lines import print_bad_lines
from vlserve.cli.output import AsJson, print_json, print_line, progress
from vlserve.cli.parameters import MAX_VERSION, Group, file_argument, file_option, folder_option
from vlserve.extras import require_extras
from vlserve.settings import load_settings


def index(
    archive: Annotated[
        Path,
        file_argument("Archive file (.mar) of a model of task match or embed."),
    ],
    data: Annotated[
        Path,
        file_option("Corpus, JSON lines with id and img or text."),
    ],
    out: Annotated[Path, folder_option("Folder for the archive <name>-<version>.mar.")],
    of: Annotated[
        Literal["image", "text"] | None,
        typer.Option(
            help="Field of the items that is embedded. Default: image where items have one, else "
            "text."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model. Default: the archive's model name with -index."),
    ] = None,
    version: Annotated[
        int, typer.Option(min=1, max=MAX_VERSION, help="Number of the version.")
    ] = 1,
    rerank: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of nearest items that the match head ranks again, for models that have "
            "one; 0: none.",
        ),
    ] = 16,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus and pack an archive of task retrieve.

    An interrupted run resumes when it is started again.
    """
    require_extras("cpu")
    from vlserve.retrieval.build import build_index

    with progress(f"indexing {data.name}") as show:
        report = build_index(
            archive, data, out,
            of=of, name=name, version=version, rerank=rerank,
            handlers=load_settings().folder("handlers"), progress=show,
        )  # fmt: skip
    if as_json:
        print_json(report)
        return
    print_bad_lines(report.bad_lines)
    precisions = "".join(f", {name} in {dtype}" for name, dtype in report.kept.items())
    print_line(
        f"{report.items} {report.of}s, {report.bytes / 1024**2:.1f} MiB{precisions}; "
        f"search: {report.search}; {len(report.bad_lines)} lines left out"
    )
    print_line(f"wrote {report.path}")
    print_line(f"next: vlserve register {report.path}")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.BUILD)(index)
