"""An INT8 archive of a checkpoint, and of an fp32 archive."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import ExportError
from vlserve.exporter.export import ExportReport, export_archive
from vlserve.exporter.pack import draft_of, pack_members
from vlserve.exporter.probes import answer_by_archive, probes_of
from vlserve.processor import has_vnni
from vlserve.quantize.gate import Verdict, open_gate
from vlserve.quantize.graph_inputs import record
from vlserve.quantize.items import Parts, read_parts, requests_of
from vlserve.quantize.search import Chosen, Found, search
from vlserve.quantize.speed import Clock, measure_ms
from vlserve.quantize.variants import GraphVariants
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve.runtime.manifest import Manifest, Quantization, QuantizedGraph

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Int8Report(ExportReport):
    """``faster``: of each graph fp32's time over its own, as it was measured while exporting. It
    is not in the manifest, because it is this machine's."""

    faster: Mapping[str, float]
    verdict: Verdict

    @property
    def quantization(self) -> Quantization:
        assert self.manifest.quantization is not None
        return self.manifest.quantization


def export_int8(
    recipe: str,
    checkpoint: Path,
    out: Path,
    calibration: Path,
    *,
    clock: Clock = measure_ms,
    progress: Progress = lambda line: None,
    **options: Any,
) -> Int8Report:
    """Run `export_archive` in fp32, with its ``options``, then `quantise_archive`. Raises as
    both."""
    with tempfile.TemporaryDirectory(prefix="vlserve-export-") as folder:
        report = export_archive(recipe, checkpoint, Path(folder), progress=progress, **options)
        result = quantise_archive(report.path, calibration, out, clock=clock, progress=progress)
    return Int8Report(
        result.path,
        result.sha256,
        result.manifest,
        report.parity,
        report.notes,
        result.faster,
        result.verdict,
    )


def quantise_archive(
    archive: Path,
    calibration: Path,
    out: Path,
    *,
    clock: Clock = measure_ms,
    progress: Progress = lambda line: None,
) -> Int8Report:
    """Write an INT8 archive of the same name and version into the folder ``out``.

    ``calibration``: JSON lines as `vlserve evaluate` reads them. Which method each graph gets is
    found by measurement, so a repeated run may decide otherwise. Raises ExportError where nothing
    is faster or the answers change too much, DataError for items that cannot be used; then no
    archive has been written.
    """
    manifest = verify_archive(archive)
    others = [name for name, graph in manifest.graphs.items() if graph.format != "onnx"]
    if others:
        raise ExportError(f"int8 is made of ONNX graphs: export {', '.join(others)} as onnx")
    parts = read_parts(calibration)
    with tempfile.TemporaryDirectory(prefix="vlserve-quantize-") as folder:
        work = Path(folder)
        unpack_archive(archive, work / "fp32")
        progress(f"calibrating on {len(parts.calibrated)} items, through the archive's own code")
        graphs = _graphs(manifest, work, parts)
        progress(f"asking the fp32 archive about {len(parts.gated)} items")
        gate = open_gate(archive, manifest, parts.gated, work)

        def judge(choice: Chosen) -> Verdict:
            return gate.judge(_pack(work, work / "judged", manifest, choice))

        candidates = {}
        for name, graph in graphs.items():
            candidates[name] = graph.candidates(clock)
            choices = ", ".join(
                f"{candidate.method} {candidate.faster:.2f}x" for candidate in candidates[name]
            )
            progress(f"graph {name}, speed against fp32: {choices or 'nothing to quantise'}")
        weights = {name: graph.cost for name, graph in graphs.items()}
        outcome = search(graphs, weights, candidates, judge, clock, progress)
        quantization = _report(outcome, parts, calibration)
        progress("answering the probes by the archive's own code")
        path = _packed_with_probes(work, out, manifest, outcome.chosen, quantization)
    faster = {name: variant.faster for name, variant in outcome.chosen.items()}
    return Int8Report(
        path, file_sha256(path), verify_archive(path), {}, (), faster, outcome.verdict
    )


def _graphs(manifest: Manifest, work: Path, parts: Parts) -> dict[str, GraphVariants]:
    requests = [fields for line in parts.calibrated for fields in requests_of(line, manifest)]
    feeds = record(work / "fp32", requests)
    files = {}
    for name, graph in manifest.graphs.items():
        folder = work / "variants" / name
        folder.mkdir(parents=True)
        files[name] = GraphVariants(name, graph, work / "fp32", feeds[name], folder)
    return files


def _report(result: Found, parts: Parts, calibration: Path) -> Quantization:
    verdict = result.verdict
    return Quantization(
        graphs={
            name: QuantizedGraph(
                method=variant.method or "float", excluded=tuple(sorted(variant.excluded))
            )
            for name, variant in result.chosen.items()
        },
        calibration_sha256=file_sha256(calibration),
        calibrated=len(parts.calibrated),
        gated=len(parts.gated),
        held_out=parts.held_out,
        agreement=verdict.agreement,
        metric=verdict.metric,
        fp32=verdict.fp32,
        int8=verdict.int8,
        plans_asked=result.plans_asked,
        vnni=has_vnni(),
    )


def _pack(
    work: Path,
    out: Path,
    manifest: Manifest,
    choice: Chosen,
    **fields: Any,
) -> Path:
    """Return the fp32 archive with the chosen graphs in place of its own."""
    members = {name: work / "fp32" / name for name in manifest.files}
    members |= {manifest.graphs[name].file: variant.file for name, variant in choice.items()}
    draft = draft_of(manifest) | {"precision": "int8", "probes": []} | fields
    return pack_members(out, draft, members)


def _packed_with_probes(
    work: Path, out: Path, manifest: Manifest, choice: Chosen, quantization: Quantization
) -> Path:
    """Pack with probes whose answers are the INT8 archive's own; ``out`` gets it whole or not at
    all."""
    entry = {"quantization": quantization.model_dump(mode="json")}
    draft_archive = _pack(work, work / "unprobed", manifest, choice, **entry)
    requests = [probe.fields for probe in manifest.probes]
    answers = answer_by_archive(draft_archive, requests)
    handlers = work / "fp32" / "handlers"
    probes = probes_of(manifest.model_dump(mode="json"), requests, answers, handlers)
    return _pack(work, out, manifest, choice, probes=probes, **entry)
