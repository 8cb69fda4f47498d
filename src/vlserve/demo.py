"""The first release of a new user: a tagger trained on drawn covers, version 1 stable, 2 ready.

Run again it does only what is missing, and never moves traffic that someone else has placed.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlserve.control.client import ControlClient
from vlserve.control.domain import State
from vlserve.exporter.pack import archive_name
from vlserve.settings import Settings

if TYPE_CHECKING:
    from vlserve.exporter.convert import Converter

MODEL = "tagger"
RECIPE = "resnet_gru"
VERSIONS = (1, 2)
ITEMS = 600

Show = Callable[[str], None]


@dataclass(frozen=True)
class DemoItem:
    """One cover of the drawn validation set."""

    image: Path
    text: str
    label: str


def release_demo(
    settings: Settings,
    control: ControlClient,
    show: Show,
    *,
    items: int = ITEMS,
    options: Mapping[str, Any] | None = None,
) -> DemoItem:
    """Bring the demo tagger to where the README starts, and return a cover to tag. ``items`` and
    training ``options`` (by default DEMO_OPTIONS) matter only where it is not trained yet.

    Errors as training, export and the control service raise them.
    """
    folder = settings.state_dir / "demo"
    item = _draw(folder / "data", items, show)
    states = {
        view.version: view.state
        for model in control.models()
        if model.model == MODEL
        for view in model.versions
    }
    missing_versions = [v for v in VERSIONS if states.get(v, State.FAILED) is State.FAILED]
    _make_archives(settings, folder, missing_versions, options, show)
    for version in missing_versions:
        show(f"registering {MODEL} {version}")
        control.register(_archive(folder, version))
    if control.model(MODEL).stable is None:
        show(f"releasing {MODEL} {VERSIONS[0]}")
        control.release(MODEL, VERSIONS[0])
    return item


def _draw(folder: Path, items: int, show: Show) -> DemoItem:
    if not (folder / "val.jsonl").is_file():
        from vlserve.training.demo_data import write_demo_data

        show("drawing covers")
        write_demo_data(folder, items=items)
    with (folder / "val.jsonl").open(encoding="utf-8") as lines:
        first: Mapping[str, Any] = json.loads(next(lines))
    return DemoItem(folder / first["img"], first["text"], first["label"])


def _archive(folder: Path, version: int) -> Path:
    return folder / "archives" / archive_name(MODEL, version)


def _make_archives(
    settings: Settings,
    folder: Path,
    versions: Iterable[int],
    options: Mapping[str, Any] | None,
    show: Show,
) -> None:
    """Train and export the versions that have no archive yet; one converter serves all."""
    absent = [version for version in versions if not _archive(folder, version).is_file()]
    if not absent:
        return
    from vlserve.exporter.convert import Converter

    with Converter() as converter:
        for version in absent:
            _make_archive(settings, folder, version, options, converter, show)


def _make_archive(
    settings: Settings,
    folder: Path,
    version: int,
    options: Mapping[str, Any] | None,
    converter: "Converter",
    show: Show,
) -> None:
    """Train with the version as seed, so that the two differ, and export."""
    from vlserve.exporter.export import export_archive
    from vlserve.exporter.recipe import load_recipe
    from vlserve.training.fit import fit
    from vlserve.training.options import DEMO_OPTIONS

    checkpoint = folder / f"checkpoint-{version}"
    show(f"training version {version}")
    report = fit(
        load_recipe(RECIPE, settings.folder("export")),
        folder / "data" / "train.jsonl",
        folder / "data" / "val.jsonl",
        checkpoint,
        options=DEMO_OPTIONS if options is None else options,
        seed=version,
    )
    show(f"version {version}: accuracy {report.metrics.accuracy:.3f} on drawn covers it never saw")
    export_archive(
        RECIPE,
        checkpoint / "model.safetensors",
        folder / "archives",
        name=MODEL,
        version=version,
        settings=settings,
        converter=converter,
        progress=show,
    )
