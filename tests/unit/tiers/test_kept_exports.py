"""Kept exports: any other input is another key, and processes share the folder."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from support import tiny_models
from support.kept_exports import PROJECT, KeptExports, code_files, code_of, folder_of, key_of
from support.tiny_models import EXPORT, GRID_FILE, Export


def changed(file: Path) -> None:
    """Change the last byte of a file."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that every export is made by."""
    folder = tmp_path_factory.mktemp("checkout")
    for file in code_files(PROJECT):
        copy = folder / file.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return folder


FILES = [str(file.relative_to(PROJECT)) for file in code_files(PROJECT)]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_of_code_is_another_key(name: str, checkout: Path) -> None:
    code_of.cache_clear()
    before, content = key_of(code_of(checkout)), (checkout / name).read_bytes()
    code_of.cache_clear()
    changed(checkout / name)
    assert key_of(code_of(checkout)) != before
    (checkout / name).write_bytes(content)
    code_of.cache_clear()
    assert key_of(code_of(checkout)) == before


def test_what_is_frozen_into_an_archive_and_what_converts_it_is_code() -> None:
    parts = ("src/vlserve/__init__.py", "src/vlserve/exporter/convert.py", "handlers/tag.py")
    parts += ("src/vlserve/models/bert.py", "src/vlserve/runtime/pipeline.py", "requirements.lock")
    assert set(parts) <= set(FILES)


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """An export with a checkpoint and a recipe of its own to change."""
    model = tiny_models.tiny_models()["visualbert-tag"]
    (tmp_path / "export").mkdir()
    shutil.copy(EXPORT / f"{model.recipe}.py", tmp_path / "export")
    monkeypatch.setattr(tiny_models, "EXPORT", tmp_path / "export")
    (tmp_path / "model").mkdir()
    return Export(model, model.write(tmp_path / "model"), "onnx")


@pytest.mark.parametrize(
    "name",
    [
        "export/visualbert.py",
        "model/config.json",
        f"model/{GRID_FILE}",
        "model/model.safetensors",
    ],
)
def test_a_changed_byte_of_a_model_is_another_key(
    name: str, export: Export, tmp_path: Path
) -> None:
    before = export.key()
    assert export.key() == before
    changed(tmp_path / name)
    assert export.key() != before


def test_another_format_or_name_is_another_key(export: Export) -> None:
    other = replace(export, model=replace(export.model, name="another"))
    keys = {export.key(), replace(export, format="torchscript").key(), other.key()}
    assert len(keys) == 3


def test_the_same_model_written_again_is_the_same_key(export: Export, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    copy = replace(export, checkpoint=export.model.write(tmp_path / "again"))
    assert folder_of(tmp_path / "again") == folder_of(tmp_path / "model")
    assert copy.key() == export.key()


def test_names_and_bytes_do_not_run_into_each_other() -> None:
    keys = {
        key_of({"a": b"bc"}),
        key_of({"ab": b"c"}),
        key_of({"a": b"b", "c": b""}),
        key_of({"a": b"b"}, {"c": b""}),
    }
    assert len(keys) == 4


def test_an_export_is_made_once(tmp_path: Path) -> None:
    exports, calls = KeptExports(tmp_path / "kept"), []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "graph").write_text("x", encoding="utf-8")

    first = exports.get_or_make("key", make)
    assert exports.get_or_make("key", make) == first == exports.get("key")
    assert len(calls) == 1 and (first / "graph").read_text(encoding="utf-8") == "x"


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("x", encoding="utf-8")
        raise ValueError("no")

    exports = KeptExports(tmp_path)
    with pytest.raises(ValueError, match="no"):
        exports.get_or_make("key", make)
    assert exports.get("key") is None
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_one_is_kept(tmp_path: Path) -> None:
    exports, both, folders = KeptExports(tmp_path), threading.Barrier(2, timeout=10), []

    def make(folder: Path) -> None:
        (folder / "graph").write_text("x", encoding="utf-8")
        both.wait()

    threads = [
        threading.Thread(target=lambda: folders.append(exports.get_or_make("key", make)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "key"] * 2
    assert [path.name for path in tmp_path.rglob("*")] == ["key", "graph"]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    exports = KeptExports(tmp_path, max_kept=2)
    for age_s, key in ((200, "old"), (300, "older")):
        exports.get_or_make(key, lambda folder: (folder / "graph").touch())
        mtime_s = exports.folder.stat().st_mtime - age_s
        os.utime(tmp_path / key, (mtime_s, mtime_s))
    assert exports.get("older") is not None
    exports.get_or_make("new", lambda folder: (folder / "graph").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "older"]
