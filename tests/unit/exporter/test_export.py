"""Whole exports, each graph converted in a process of its own."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from vlserve.errors import CheckpointMismatch, ExportError, ParityFailed, RecipeNotFound
from vlserve.exporter.convert import Converter
from vlserve.exporter.export import ExportReport, export_archive, prove, read_trained
from vlserve.exporter.probes import answer_by_archive, drawn_image
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve.runtime.task import difference
from vlserve.settings import load_settings

PROJECT = Path(__file__).parents[3]
COUNTING = str(Path(__file__).parents[2] / "support" / "counting_recipe.py")
CONFIG: dict[str, Any] = {
    "labels": ["cat", "dog", "car"],
    "vocabulary": {"a": 2, "猫": 3},
    "max_length": 15,
    "unknown_id": 1,
    "image": {"height": 32, "width": 32},
    "hidden": 8,
    "embedding_size": 6,
    "resnet": {"width": 8},
}


def checkpoint(folder: Path, recipe: str, config: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    network = load_recipe(recipe, PROJECT / "export").build(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    return checkpoint(folder, "resnet_gru", CONFIG | {"pooling": "final_states"})


@pytest.fixture(scope="module")
def onnx_report(
    tagger: Path, converter: Converter, tmp_path_factory: pytest.TempPathFactory
) -> ExportReport:
    out = tmp_path_factory.mktemp("out")
    return export_archive("resnet_gru", tagger, out, name="tagger", version=7, converter=converter)


def test_the_archive_is_whole_and_says_what_it_is(onnx_report: ExportReport, tagger: Path) -> None:
    manifest = verify_archive(onnx_report.path)
    assert manifest == onnx_report.manifest
    assert onnx_report.path.name == "tagger-7.mar"
    assert onnx_report.sha256 == file_sha256(onnx_report.path)
    assert (manifest.model, manifest.version, manifest.family) == ("tagger", 7, "resnet_gru")
    assert (manifest.task, manifest.precision) == ("tag", "fp32")
    assert manifest.checkpoint_sha256 == file_sha256(tagger)
    assert manifest.lock_sha256 == file_sha256(PROJECT / "requirements.lock")
    assert manifest.labels == ("cat", "dog", "car")
    assert manifest.parity is not None and manifest.parity.cases >= 5
    assert 0 < manifest.parity.max_abs_diff < 1e-5
    assert len(manifest.probes) == 3


def test_its_probes_are_what_its_own_code_answers(onnx_report: ExportReport) -> None:
    probes = onnx_report.manifest.probes
    answers = answer_by_archive(onnx_report.path, [probe.fields for probe in probes])
    assert answers == [probe.answer for probe in probes]


def test_the_graph_is_dynamic_and_tells_nothing_of_this_machine(onnx_report: ExportReport) -> None:
    with zipfile.ZipFile(onnx_report.path) as archive:
        raw = archive.read("graphs/model.onnx")
    graph = onnx.load_model_from_string(raw).graph
    dims = {
        value.name: tuple(
            dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.output)
    }
    assert dims == {
        "image": ("batch", 3, 32, 32),
        "text_ids": ("batch", "text"),
        "text_length": ("batch",),
        "logits": ("batch", 3),
    }
    assert str(PROJECT).encode() not in raw and b".py" not in raw


@pytest.mark.long
def test_another_process_elsewhere_writes_the_same_bytes(
    onnx_report: ExportReport, tagger: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in tagger.parent.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    code = (
        "import sys; from pathlib import Path;"
        "from vlserve.exporter.export import export_archive;"
        "export_archive('resnet_gru', Path('model.safetensors'), Path('out'),"
        " name='tagger', version=7)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=elsewhere, env=environment)
    again = elsewhere / "out" / "tagger-7.mar"
    assert file_sha256(again) == onnx_report.sha256


def test_a_perturbed_weight_in_the_graph_is_refused(
    onnx_report: ExportReport, tagger: Path, tmp_path: Path
) -> None:
    manifest = unpack_archive(onnx_report.path, tmp_path / "unpacked")
    file = tmp_path / "unpacked" / "graphs" / "model.onnx"
    model = onnx.load(file)
    weight = next(w for w in model.graph.initializer if w.name.endswith("fc.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.001, weight.name))
    onnx.save(model, file)
    source = read_trained("resnet_gru", tagger, None, load_settings())
    interface = source.recipe.serve(source.config, tmp_path)
    plan = source.recipe.graphs(source.network, source.config)["model"]
    with pytest.raises(ParityFailed) as error:
        prove(source, interface, "model", plan, manifest.graphs["model"], tmp_path / "unpacked")
    assert str(error.value).count("largest difference") == 6


@pytest.mark.long
def test_last_step_is_served_without_lengths_and_padded(
    converter: Converter, tmp_path: Path
) -> None:
    file = checkpoint(tmp_path, "resnet_gru", CONFIG | {"pooling": "last_step"})
    report = export_archive("resnet_gru", file, tmp_path / "out", converter=converter)
    graph = report.manifest.graphs["model"]
    assert [tensor.name for tensor in graph.inputs] == ["image", "text_ids"]
    assert report.manifest.text is not None and report.manifest.text.pad_to_max
    assert report.manifest.parity is not None and report.manifest.parity.cases >= 5


def test_torchscript_is_the_same_network_and_repeats(
    onnx_report: ExportReport, tagger: Path, converter: Converter, tmp_path: Path
) -> None:
    reports = [
        export_archive(
            "resnet_gru", tagger, tmp_path / out, format="torchscript", converter=converter
        )
        for out in ("first", "second")
    ]
    assert reports[0].sha256 == reports[1].sha256
    manifest = reports[0].manifest
    graph = manifest.graphs["model"]
    assert (graph.file, graph.format) == ("graphs/model.pt", "torchscript")
    with zipfile.ZipFile(reports[0].path) as archive:
        assert str(PROJECT).encode() not in archive.read(graph.file)
    for ours, theirs in zip(manifest.probes, onnx_report.manifest.probes, strict=True):
        assert difference(theirs.answer, ours.answer) is None


def test_a_baked_in_length_is_refused_and_no_archive_is_written(
    converter: Converter, tmp_path: Path
) -> None:
    config = {"baked_in": True}
    file = checkpoint(tmp_path, COUNTING, config)
    with pytest.raises(ParityFailed) as error:
        export_archive(COUNTING, file, tmp_path / "out", format="torchscript", converter=converter)
    message = str(error.value)
    assert "no archive was written" in message
    for sizes in ("batch 1, text 15", "batch 1, text 1", "batch 2, text 8", "batch 5, text 12"):
        assert f"at {sizes}: " in message
    assert not (tmp_path / "out").exists()


def test_onnx_refuses_a_baked_in_length_too(converter: Converter, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, COUNTING, {"baked_in": True})
    with pytest.raises(ExportError, match=r"text_ids axis 1 \(text\) is static at 7"):
        export_archive(COUNTING, file, tmp_path / "out", converter=converter)
    assert not (tmp_path / "out").exists()


def test_given_items_become_the_probes(converter: Converter, tmp_path: Path) -> None:
    file = checkpoint(tmp_path, COUNTING, {})
    items = [{"image": drawn_image(1), "text": "abba"}]
    lines: list[str] = []
    report = export_archive(
        COUNTING,
        file,
        tmp_path,
        format="torchscript",
        items=items,
        converter=converter,
        progress=lines.append,
    )
    assert [probe.fields for probe in report.manifest.probes] == items
    assert report.path == tmp_path / "counting-1.mar"
    assert lines[0] == "reading model.safetensors" and lines[-1] == "packed counting-1.mar"
    comparisons = [line for line in lines if line.startswith("comparing")]
    cases = report.parity["model"].cases
    assert comparisons == [
        f"comparing graph model with the network, shape {place} of {cases}"
        for place in range(1, cases + 1)
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"precision": "int4"},
            ExportError,
            "no precision int4: there are fp32, fp16, bf16 and int8",
        ),
        ({"precision": "bf16"}, ExportError, "bf16 needs --format torchscript"),
        ({"format": "tensorrt"}, ExportError, "there are onnx, torchscript"),
        ({"name": "Tagger!"}, ExportError, "name 'Tagger!'"),
        ({"version": 0}, ExportError, "version 0"),
        ({"recipe": "resnet_lstm"}, RecipeNotFound, "no recipe resnet_lstm"),
        ({"config": Path("missing.json")}, ExportError, "no missing.json"),
        ({"checkpoint": Path("missing.pth")}, CheckpointMismatch, "no checkpoint missing.pth"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_exported_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str, tagger: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "recipe": "resnet_gru",
        "checkpoint": tagger,
        "out": tmp_path / "out",
    } | options
    with pytest.raises(error) as refusal:
        export_archive(**arguments)
    assert message in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_file_that_is_none_is_refused(tagger: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    for text, message in (("def", "cannot be loaded"), ("x = 1", "defines no RECIPE")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeNotFound, match=message):
            export_archive(str(file), tagger, tmp_path / "out")
