"""A missing extra: one line that names it."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlserve import cli, extras
from vlserve.errors import ExtraMissing
from vlserve.runtime.backend import open_backend
from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.runtime.manifest import Graph, TensorSpec


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that makes a package look absent."""

    def hide(package: str) -> None:
        present = importlib.util.find_spec
        monkeypatch.setattr(
            extras, "find_spec", lambda name: None if name == package else present(name)
        )
        monkeypatch.setitem(sys.modules, package, None)

    return hide


def run(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["vlserve", *words])
    with pytest.raises(SystemExit) as system_exit:
        cli.main()
    return int(system_exit.value.code or 0)


@pytest.mark.parametrize("package", [name for names in extras.MODULES.values() for name in names])
def test_every_package_of_an_extra_is_missed(without, package: str) -> None:  # type: ignore[no-untyped-def]
    extras.require_extras(*extras.MODULES)
    without(package)
    with pytest.raises(ExtraMissing, match=package):
        extras.require_extras(*extras.MODULES)


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["train", "resnet_gru", "--data", "{file}", "--val", "{file}", "--out", "x"],
         "sklearn", "train"),
        (["export", "resnet_gru", "--checkpoint", "{file}", "--out", "x"], "onnxscript", "train"),
        (["export", "resnet_gru", "--checkpoint", "{file}", "--out", "x"], "onnxruntime", "cpu"),
        (["evaluate", "{file}", "--data", "{file}"], "pycocotools", "train"),
        (["index", "{file}", "--data", "{file}", "--out", "x"], "onnxruntime", "cpu"),
        (["demo"], "onnxruntime", "cpu"),
        (["demo"], "transformers", "train"),
    ],
)  # fmt: skip
def test_commands_name_it_in_one_line(  # type: ignore[no-untyped-def]
    without,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    package: str,
    extra: str,
) -> None:
    file = tmp_path / "file"
    file.touch()
    without(package)
    assert run(monkeypatch, [word.format(file=file) for word in words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"the extra `{extra}`" in lines[0]
    assert f"pip install 'vlserve[{extra}]'" in lines[0]


def test_an_import_that_fails_later_is_named_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch, []) == 1
    assert "the extra `train`" in capsys.readouterr().err


def test_a_module_that_is_of_no_extra_is_a_bug_and_shown_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_an_archive_that_is_loaded_without_its_engine_says_what_brings_it(  # type: ignore[no-untyped-def]
    without, tmp_path: Path
) -> None:
    without("onnxruntime")
    tensor = TensorSpec(name="x", dtype="float32", dims=("batch",))
    graph = Graph(file="graphs/model.onnx", format="onnx", inputs=(tensor,), outputs=(tensor,))
    with pytest.raises(ArchiveUnreadable, match=r"pip install 'vlserve\[cpu\]'"):
        open_backend(graph, tmp_path, threads=1)
