"""From a trained checkpoint to an archive: read, convert, prove equal, probe, pack."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from vlserve.errors import ExportError
from vlserve.exporter.checkpoint import checkpoint_sha256, open_checkpoint
from vlserve.exporter.convert import (
    SUFFIXES,
    Converter,
    Format,
    Job,
    example_sizes,
    graph_entry,
    load_network,
)
from vlserve.exporter.float16 import TOLERANCE, check_precision, onnx_to_fp16
from vlserve.exporter.image_settings import check_pixel_scale, published_image
from vlserve.exporter.json_file import read_json
from vlserve.exporter.pack import Member, pack_archive
from vlserve.exporter.parity import Case, measure, one_thread, unseen_sizes
from vlserve.exporter.probes import answer_by_archive, drawn_requests, probes_of
from vlserve.exporter.recipe import GraphPlan, Recipe, Served, load_recipe, recipe_path
from vlserve.exporter.weights import fit_names, prefix_note
from vlserve.project import project_file
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.runtime.backend import open_backend
from vlserve.runtime.errors import wrong_fields
from vlserve.runtime.manifest import Graph, Manifest, ModelName, Parity, Version
from vlserve.settings import Settings, load_settings

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was proved."""

    path: Path
    sha256: str
    manifest: Manifest
    parity: Mapping[str, Parity]
    """Of each graph."""
    notes: tuple[str, ...]
    """What was chosen or set right while the checkpoint was read."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint read with its recipe: everything that an export starts from."""

    recipe: Recipe
    recipe_path: Path
    checkpoint: Path
    state_key: str | None
    """Under which of the file's keys the weights are; None: the only one, or the preferred."""
    prefix: str
    """Of all its parameters' names, which the network does not have."""
    config: Mapping[str, Any]
    network: nn.Module
    notes: tuple[str, ...]


def export_archive(
    recipe: str,
    checkpoint: Path,
    out: Path,
    *,
    config: Path | None = None,
    state_key: str | None = None,
    format: Format = "onnx",
    precision: str = "fp32",
    name: str | None = None,
    version: int = 1,
    items: Sequence[Mapping[str, Any]] = (),
    settings: Settings | None = None,
    converter: Converter | None = None,
    progress: Progress = lambda line: None,
) -> ExportReport:
    """Write ``<name>-<version>.mar`` into the folder ``out``.

    ``recipe``: a name in export/, or the path of a recipe file. ``config``: by default config.json
    beside the checkpoint. ``state_key``: under which of its keys the weights are, by default the
    one that holds any, or the first of the usual ones. ``name``: by default the recipe's family.
    ``items``: requests as JSON fields (images as base64) to use as probes; drawn where there are
    none. ``converter``: one for several exports; by default this export starts its own.
    ``precision``: fp32, fp16 or bf16
    (TorchScript alone); int8 is made of the fp32 archive by vlserve.quantize.

    Raises ExportError or one of its children (RecipeNotFound, CheckpointMismatch, ParityFailed),
    or ArchiveError; then no archive has been written. Repeated, it writes the same bytes.
    """
    settings = settings or load_settings()
    _check_request(format, precision, name, version)
    progress(f"reading {checkpoint.name}")
    source = read_trained(recipe, checkpoint, config, settings, state_key)
    for note in source.notes:
        progress(note)
    with tempfile.TemporaryDirectory(prefix="vlserve-export-") as folder:
        work = Path(folder)
        (work / "assets").mkdir()
        interface = _served(source, work / "assets")
        if interface.image:
            check_pixel_scale(interface.image)
        with nullcontext(converter) if converter else Converter() as converter:
            graphs, parity = _prove_graphs(
                source, interface, format, precision, work, converter, progress
            )
        files = [work / graph.file for graph in graphs.values()]
        files += sorted((work / "assets").iterdir())
        members: dict[str, Member] = {file.relative_to(work).as_posix(): file for file in files}
        draft = _draft(source, interface, graphs, parity, settings)
        draft |= {
            "model": name or source.recipe.spec.family,
            "version": version,
            "precision": precision,
        }
        progress("answering the probes by the archive's own code")
        handlers = settings.folder("handlers")
        draft_archive = pack_archive(work / "unprobed", draft, members, handlers)
        requests = list(items) or drawn_requests(draft, handlers)
        answers = answer_by_archive(draft_archive, requests)
        draft["probes"] = probes_of(draft, requests, answers, handlers)
        path = pack_archive(out, draft, members, handlers)
    progress(f"packed {path.name}")
    return ExportReport(path, file_sha256(path), verify_archive(path), parity, source.notes)


def read_trained(
    recipe: str,
    checkpoint: Path,
    config: Path | None,
    settings: Settings,
    state_key: str | None = None,
) -> Trained:
    """Read the network of ``checkpoint`` in eval mode. Raises RecipeNotFound, CheckpointMismatch,
    or ExportError for a config that is missing or wrong."""
    folder = settings.folder("export")
    recipe_object = load_recipe(recipe, folder)
    weights = open_checkpoint(checkpoint, state_key, mapped=True)
    config_file = config or checkpoint.parent / "config.json"
    content = _read_config(config_file)
    image_settings = (
        published_image(config_file.parent) if recipe_object.spec.reads_image_settings else None
    )
    own = content.get("image") or {}
    if image_settings and isinstance(own, dict):
        content["image"] = {**image_settings.fields, **own}

    def load(state: dict[str, Tensor]) -> tuple[dict[str, Any], nn.Module]:
        full_config = recipe_object.complete_config(content, state, config_file.parent)
        return full_config, load_network(recipe_object, state, full_config)

    prefix, (full_config, network) = fit_names(weights, load)
    return Trained(
        recipe=recipe_object,
        recipe_path=recipe_path(recipe, folder),
        checkpoint=checkpoint,
        state_key=state_key,
        prefix=prefix,
        config=full_config,
        network=network,
        notes=(
            *weights.notes,
            *prefix_note(prefix),
            *([image_settings.note] if image_settings else []),
        ),
    )


def _served(source: Trained, assets: Path) -> Served:
    """Return what the recipe says of requests and answers. ExportError where config.json asks for
    what no manifest can say."""
    try:
        return source.recipe.serve(source.config, assets)
    except ValidationError as error:
        raise ExportError(f"config.json: {wrong_fields(error, 'config')}") from error


def _check_request(format: str, precision: str, name: str | None, version: int) -> None:
    if format not in SUFFIXES:
        raise ExportError(f"no format {format}: there are {', '.join(SUFFIXES)}")
    check_precision(precision, format)
    for kind, value, field in ((ModelName, name or "model", "name"), (Version, version, "version")):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise ExportError(f"{field} {value!r}: {error.errors()[0]['msg']}") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ExportError(
            f"no {path}: export needs the checkpoint's config (export/README.md lists its fields)"
        )
    config = read_json(path, str(path))
    if not isinstance(config, dict):
        raise ExportError(f"{path} is not a JSON object")
    return config


def _prove_graphs(
    source: Trained,
    interface: Served,
    format: Format,
    precision: str,
    work: Path,
    converter: Converter,
    progress: Progress,
) -> tuple[dict[str, Graph], dict[str, Parity]]:
    """Convert every graph of the network into ``work`` and hold it against the network."""
    (work / "graphs").mkdir()
    graphs: dict[str, Graph] = {}
    parity: dict[str, Parity] = {}
    for name, plan in source.recipe.graphs(source.network, source.config).items():
        graph = graph_entry(plan, f"graphs/{name}{SUFFIXES[format]}", format)
        progress(f"converting graph {name} to {format}")
        converter.convert(
            Job(
                recipe=str(source.recipe_path.resolve()),
                checkpoint=str(source.checkpoint.absolute()),
                state_key=source.state_key,
                prefix=source.prefix,
                config=source.config,
                graph=name,
                format=format,
                output=str(work / graph.file),
                precision=precision,
            )
        )
        if format == "onnx" and precision == "fp16":
            prove(source, interface, name, plan, graph, work, progress=progress)
            onnx_to_fp16(work / graph.file)
        parity[name] = prove(
            source, interface, name, plan, graph, work, TOLERANCE[precision], progress
        )
        progress(
            f"graph {name} equals the network in {parity[name].cases} unseen shapes "
            f"(largest difference {parity[name].max_abs_diff:.2g})"
        )
        graphs[name] = graph
    return graphs, parity


def prove(
    source: Trained,
    interface: Served,
    name: str,
    plan: GraphPlan,
    graph: Graph,
    root: Path,
    tolerance: float = 0.0,
    progress: Progress = lambda line: None,
) -> Parity:
    """Raise ParityFailed unless the graph file under ``root`` answers like the network, as near as
    the family's ``rtol`` and ``atol`` or ``tolerance`` for both, whichever is larger."""
    export_sizes = example_sizes(plan.inputs)
    longest = {"text": interface.text.max_length} if interface.text else {}
    recipe, spec = source.recipe, source.recipe.spec
    shapes = unseen_sizes(export_sizes, longest, export_sizes)

    def cases() -> Iterator[Case]:
        for seed, sizes in enumerate(shapes, start=1):
            progress(f"comparing graph {name} with the network, shape {seed} of {len(shapes)}")
            yield sizes, recipe.example(name, source.config, sizes, seed)

    with one_thread():
        backend = open_backend(graph, root, threads=1)
        measurement = measure(
            plan, backend, cases(), max(spec.rtol, tolerance), max(spec.atol, tolerance)
        )
    measurement.assert_equal(name)
    return measurement.parity


def _draft(
    source: Trained,
    interface: Served,
    graphs: Mapping[str, Graph],
    parity: Mapping[str, Parity],
    settings: Settings,
) -> dict[str, Any]:
    lock = project_file("requirements.lock", settings.project_dir)
    spec = source.recipe.spec
    return {
        "training": source.config.get("training") or None,
        "task": interface.task,
        "family": spec.family,
        "graphs": {name: graph.model_dump(mode="json") for name, graph in graphs.items()},
        "image": interface.image and interface.image.model_dump(mode="json"),
        "text": interface.text and interface.text.model_dump(mode="json"),
        "regions": interface.regions and interface.regions.model_dump(mode="json"),
        "labels": list(interface.labels),
        "multi_label": interface.multi_label,
        "options": dict(interface.options),
        "parity": {
            "cases": sum(figures.cases for figures in parity.values()),
            "max_abs_diff": max(figures.max_abs_diff for figures in parity.values()),
            "rtol": max(figures.rtol for figures in parity.values()),
            "atol": max(figures.atol for figures in parity.values()),
        },
        "checkpoint_sha256": checkpoint_sha256(source.checkpoint),
        "lock_sha256": file_sha256(lock) if lock.is_file() else None,
    }
