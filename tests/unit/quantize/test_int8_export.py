"""Whole INT8 exports of tiny models, whose speeds are said, not measured: nothing here waits for a
clock."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from support.tiny_models import Archives
from vlserve.errors import DataError, ExportError
from vlserve.exporter.export import ExportReport
from vlserve.exporter.pack import draft_of, pack_members
from vlserve.processor import has_vnni
from vlserve.quantize.export import Int8Report, quantise_archive
from vlserve.quantize.gate import open_gate
from vlserve.quantize.graph_inputs import Feeds
from vlserve.quantize.items import read_parts
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.manifest import Graph
from vlserve.runtime.types import Request
from vlserve.training.demo_data import write_demo_data

ITEMS = 72


def in_order(graph: Graph, files: Sequence[Path], feeds: Feeds) -> list[float]:
    """fp32 takes 10 ms, what comes later is slower than what comes before, and faster than fp32."""
    return [10.0, *(5.0 + place for place in range(len(files) - 1))]


def fp32_fastest(graph: Graph, files: Sequence[Path], feeds: Feeds) -> list[float]:
    return [1.0, *(2.0 for _ in files[1:])]


def covers(folder: Path, labels: Sequence[str]) -> Path:
    """Drawn covers, labelled as this model's labels go round."""
    file = write_demo_data(folder, items=ITEMS + 20).train
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for place, line in enumerate(lines):
        line["label"] = labels[place % len(labels)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def questions(folder: Path, dim: int, answers: Sequence[str]) -> Path:
    """Features of one to nine regions, and a question about each."""
    random = np.random.default_rng(0)
    lines = []
    for place in range(ITEMS):
        name = f"{place}.npy"
        np.save(folder / name, random.standard_normal((1 + place % 9, dim)).astype(np.float32))
        text = "a red ball cats"[: 3 + place % 12]
        label = answers[place % len(answers)]
        lines.append({"id": str(place), "features": name, "text": text, "label": label})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tagger(archives: Archives) -> ExportReport:
    return archives.report("resnet-gru-tag", "onnx")


@pytest.fixture(scope="module")
def data(tagger: ExportReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return covers(tmp_path_factory.mktemp("covers"), tagger.manifest.labels)


@pytest.fixture(scope="module")
def int8_tagger(
    tagger: ExportReport, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Int8Report:
    return quantise_archive(tagger.path, data, tmp_path_factory.mktemp("int8"), clock=in_order)


def test_the_manifest_says_how_it_was_made(int8_tagger: Int8Report, data: Path) -> None:
    manifest = verify_archive(int8_tagger.path)
    quantization = manifest.quantization
    assert manifest.precision == "int8" and quantization is not None
    assert quantization.graphs["model"].method == "static"
    assert quantization.calibration_sha256 == file_sha256(data)
    parts = read_parts(data)
    counts = (quantization.calibrated, quantization.gated)
    assert counts == (len(parts.calibrated), len(parts.gated))
    assert quantization.held_out and quantization.agreement >= 1 - 1 / quantization.gated
    assert int8_tagger.verdict.passed
    assert quantization.plans_asked == 1 and quantization.vnni == has_vnni()


def test_its_convolutions_are_int8_with_a_scale_a_channel(
    int8_tagger: Int8Report, tmp_path: Path
) -> None:
    unpack_archive(int8_tagger.path, tmp_path / "int8")
    graph = onnx.load(tmp_path / "int8" / "graphs" / "model.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        dequantise = makers[node.input[1]]
        assert dequantise.op_type == "DequantizeLinear"
        values, scale = (weights[name] for name in dequantise.input[:2])
        assert values.data_type == onnx.TensorProto.INT8
        assert list(scale.dims) == [values.dims[0]]


def test_its_probes_are_its_own_answers(int8_tagger: Int8Report, tagger: ExportReport) -> None:
    ours, theirs = int8_tagger.manifest.probes, tagger.manifest.probes
    assert [probe.fields for probe in ours] == [probe.fields for probe in theirs]
    assert [probe.answer for probe in ours] != [probe.answer for probe in theirs]


@pytest.fixture(scope="module")
def int8_answers(
    archives: Archives, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Int8Report, Path]:
    """Of visualbert, dynamic; and the file of its items."""
    report = archives.report("visualbert-answer", "onnx")
    assert report.manifest.regions is not None
    folder = tmp_path_factory.mktemp("questions")
    file = questions(folder, report.manifest.regions.dim, report.manifest.labels)

    def dynamic_first(graph: Graph, files: Sequence[Path], feeds: Feeds) -> list[float]:
        return [10.0, *range(5 + len(files) - 1, 5, -1)]

    return quantise_archive(report.path, file, folder / "out", clock=dynamic_first), file


@pytest.mark.long
def test_a_transformer_becomes_dynamic_where_that_is_faster(
    int8_answers: tuple[Int8Report, Path],
) -> None:
    report, _ = int8_answers
    assert report.quantization.graphs["model"].method == "dynamic"
    assert report.quantization.metric == "accuracy"


@pytest.mark.long
def test_padding_and_neighbours_change_an_answer_by_roundings_alone(
    int8_answers: tuple[Int8Report, Path], tmp_path: Path
) -> None:
    report, file = int8_answers
    unpack_archive(report.path, tmp_path / "int8")
    pipeline = open_folder(tmp_path / "int8")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:9]]
    requests = [
        Request({"features": (file.parent / line["features"]).read_bytes(), "text": line["text"]})
        for line in lines
    ]
    together = np.stack([_logits(answer) for answer in pipeline.run(requests).answers])
    alone = np.stack([_logits(pipeline.run([request]).answers[0]) for request in requests])
    apart = np.abs(together[:, None] - alone).max(axis=2)
    others = apart[~np.eye(len(apart), dtype=bool)]
    assert apart.diagonal().max() < others.min() / 2


def _logits(answer: Any) -> Any:
    """Up to a number that all have alike."""
    scores = {entry["answer"]: entry["score"] for entry in answer["answers"]}
    logs = np.log([scores[name] for name in sorted(scores)])
    return logs - logs.mean()


def test_a_runtime_that_is_not_ours_is_refused(
    tagger: ExportReport, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "older"
    manifest = unpack_archive(tagger.path, folder)
    with (folder / "vlserve" / "runtime" / "inputs.py").open("a", encoding="utf-8") as file:
        file.write("# as it was\n")
    members = {name: folder / name for name in manifest.files}
    older = pack_members(tmp_path / "packed", draft_of(manifest), members)
    with pytest.raises(ExportError, match="frozen runtime is of another vlserve"):
        quantise_archive(older, data, tmp_path / "out")


@pytest.mark.long
def test_too_few_items_for_the_gate_are_refused(
    tagger: ExportReport, data: Path, tmp_path: Path
) -> None:
    lines = data.read_text(encoding="utf-8").splitlines()[:19]
    gate = [{**line, "img": str(data.parent / line["img"])} for line in map(json.loads, lines)]
    gate.append({**gate[0], "id": "gone", "img": str(tmp_path / "gone.jpg")})
    with pytest.raises(DataError, match=r"needs 20 items: of the 20 .*, 19 can be used"):
        open_gate(tagger.path, tagger.manifest, gate, tmp_path)


@pytest.mark.long
def test_what_is_not_faster_is_refused(tagger: ExportReport, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"1\.00 times as fast .*: model static 0\.50x"):
        quantise_archive(tagger.path, data, tmp_path / "out", clock=fp32_fastest)
    assert not (tmp_path / "out").exists()


def test_items_that_the_archive_cannot_answer_are_refused(
    tagger: ExportReport, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(
        '{"id": "1", "img": "missing.jpg", "text": "a", "label": "b"}\n', encoding="utf-8"
    )
    with pytest.raises(DataError, match="answers no item of the calibration file: image"):
        quantise_archive(tagger.path, file, tmp_path / "out")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no usable line"):
        quantise_archive(tagger.path, file, tmp_path / "out")


def test_torchscript_is_refused(archives: Archives, data: Path, tmp_path: Path) -> None:
    report = archives.report("resnet-gru-tag", "torchscript")
    with pytest.raises(ExportError, match="int8 is made of ONNX graphs: export model as onnx"):
        quantise_archive(report.path, data, tmp_path / "out")
