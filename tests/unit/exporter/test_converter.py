"""One warm process, a fork for every graph: no export sees what another has left behind."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from support.tiny_models import EXPORT, TinyModel, seeded, tiny_models
from vlserve.errors import ExportError
from vlserve.exporter import convert as convert_module
from vlserve.exporter.checkpoint import open_checkpoint
from vlserve.exporter.convert import Converter, Format, Job
from vlserve.exporter.recipe import GraphPlan, load_recipe
from vlserve.exporter.weights import Weights

COUNTING = Path(__file__).parents[2] / "support" / "counting_recipe.py"


def recurrent(folder: Path) -> Job:
    model: TinyModel = tiny_models()["resnet-gru-tag"]
    recipe = EXPORT / f"{model.recipe}.py"
    config = dict(model.built, vocabulary_size=6)
    save_file(
        seeded(load_recipe(str(recipe), EXPORT).build(config), seed=1).state_dict(),
        folder / "gru.safetensors",
    )
    return Job(str(recipe), str(folder / "gru.safetensors"), config, "model", "onnx", "")


def counting(folder: Path, baked_in: bool, format: Format = "onnx") -> Job:
    config = {"baked_in": baked_in}
    network = load_recipe(str(COUNTING), EXPORT).build(config)
    save_file(network.state_dict(), folder / "counting.safetensors")
    return Job(
        str(COUNTING), str(folder / "counting.safetensors"), config, "model", format,
        str(folder / f"counting.{format}"),
    )  # fmt: skip


@pytest.mark.long
def test_a_recurrent_network_is_as_dynamic_the_second_time(
    converter: Converter, tmp_path: Path
) -> None:
    job = recurrent(tmp_path)
    files = [tmp_path / f"{number}.onnx" for number in (1, 2)]
    for file in files:
        converter.convert(Job(**{**vars(job), "output": str(file)}))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failure_says_why_and_leaves_the_next_alone(converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"graph model to onnx failed: .*text.* is static at"):
        converter.convert(counting(tmp_path, baked_in=True))
    good = counting(tmp_path, baked_in=False)
    converter.convert(good)
    assert Path(good.output).stat().st_size > 0


@pytest.mark.export
def test_a_converter_that_is_gone_is_an_error(tmp_path: Path) -> None:
    converter = Converter()
    converter.close()
    with pytest.raises(ExportError, match="exit code unknown"):
        converter.convert(counting(tmp_path, baked_in=False))


@pytest.mark.export
def test_modules_in_the_callers_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for name in ("queue", "uuid", "tokenizers"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    job = counting(tmp_path, baked_in=False, format="torchscript")  # begins sooner than ONNX
    with Converter() as converter:
        converter.convert(job)
    assert Path(job.output).stat().st_size > 0


def test_what_a_graph_does_not_need_is_let_go_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = counting(tmp_path, baked_in=False)
    references: list[weakref.ref[Any]] = []

    def open_weights(path: Path, key: str | None, mapped: bool) -> Weights:
        weights = open_checkpoint(path, key, mapped=mapped)
        references.extend(weakref.ref(tensor) for tensor in weights.state.values())
        return weights

    def trace(plan: GraphPlan, *_: object) -> None:
        gc.collect()
        assert references and [ref() for ref in references] == [None] * len(references)

    monkeypatch.setattr(convert_module, "open_checkpoint", open_weights)
    monkeypatch.setattr(convert_module, "to_onnx", trace)
    convert_module.convert(job)
