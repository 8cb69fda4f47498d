"""Archives are reproducible, complete, and appear whole or not at all."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import ExportError
from vlserve.exporter.pack import (
    draft_of,
    has_our_runtime,
    pack_archive,
    pack_members,
    write_zip,
)
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.manifest import (
    CAPABILITIES,
    MANIFEST,
    TORCHSERVE_MANIFEST,
    Manifest,
    read_manifest,
)


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    folder = tmp_path / "handlers"
    folder.mkdir()
    (folder / "tag.py").write_text("TASK = None\n", encoding="utf-8")
    for entry_point in ("torchserve_handler.py", "triton_model.py"):
        (folder / entry_point).write_text("def answer(data, ids): ...\n", encoding="utf-8")
    return folder


def draft(**changes: Any) -> dict[str, Any]:
    tensors = [{"name": "x", "dtype": "float32", "dims": ["batch", 2]}]
    graph = {"file": "graphs/model.onnx", "format": "onnx", "inputs": tensors, "outputs": tensors}
    fields = {"model": "m", "version": 3, "task": "tag", "family": "f", "graphs": {"model": graph}}
    return fields | changes


def manifest_in(path: Path) -> Manifest:
    with zipfile.ZipFile(path) as archive:
        return read_manifest(archive.read(MANIFEST))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, handlers: Path) -> None:
    graph = tmp_path / "graph"
    graph.write_bytes(b"weights")
    first = pack_archive(tmp_path / "a", draft(), {"graphs/model.onnx": graph}, handlers)
    os.utime(graph, (1, 1))
    graph.chmod(0o600)
    second = pack_archive(tmp_path / "b", draft(), {"graphs/model.onnx": graph}, handlers)
    assert first.name == second.name == "m-3.mar"
    assert first.read_bytes() == second.read_bytes()
    from_bytes = pack_archive(tmp_path / "c", draft(), {"graphs/model.onnx": b"weights"}, handlers)
    assert from_bytes.read_bytes() == first.read_bytes()


def test_the_manifest_lists_every_member_with_its_sha256(tmp_path: Path, handlers: Path) -> None:
    path = pack_archive(tmp_path, draft(), {"graphs/model.onnx": b"w"}, handlers)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        manifest = read_manifest(archive.read(MANIFEST))
        names = set(archive.namelist())
        assert names == set(manifest.files) | {MANIFEST}
        for name, sha256 in manifest.files.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == sha256
        torchserve = json.loads(archive.read(TORCHSERVE_MANIFEST))
    assert {
        "vlserve/__init__.py",
        "vlserve/runtime/manifest.py",
        "handlers/tag.py",
        "triton_model.py",
    } <= names
    assert torchserve["model"] == {
        "modelName": "m",
        "modelVersion": "3",
        "handler": "torchserve_handler.py",
    }


def test_a_manifest_can_be_packed_again(tmp_path: Path, handlers: Path) -> None:
    members = {"graphs/model.onnx": b"w"}
    path = pack_archive(tmp_path / "a", draft(), members, handlers)
    again = pack_archive(tmp_path / "b", draft_of(manifest_in(path)), members, handlers)
    assert again.read_bytes() == path.read_bytes()


QUANTIZATION = {
    "graphs": {"model": {"method": "static", "excluded": []}},
    "calibration_sha256": "0" * 64,
    "calibrated": 64,
    "gated": 130,
    "held_out": True,
    "agreement": 1.0,
    "metric": "accuracy",
    "fp32": 0.5,
    "int8": 0.5,
}


@pytest.mark.parametrize("fields", [{}, {"quantization": QUANTIZATION}])
def test_older_runtimes_meet_no_field_that_they_do_not_know(
    fields: dict[str, Any], tmp_path: Path, handlers: Path
) -> None:
    members = {"graphs/model.onnx": b"w"}
    path = pack_archive(tmp_path, draft(**fields), members, handlers)
    for _ in range(2):
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(MANIFEST)
        assert json.loads(raw).get("quantization") == fields.get("quantization")
        assert ("quantization" in json.loads(raw)) == bool(fields)
        path = pack_archive(tmp_path / "again", draft_of(read_manifest(raw)), members, handlers)


def test_capabilities_are_those_of_the_runtime_in_the_archive(
    tmp_path: Path, handlers: Path
) -> None:
    members = {"graphs/model.onnx": b"w"}
    path = pack_archive(tmp_path / "new", draft(), members, handlers)
    assert manifest_in(path).capabilities == CAPABILITIES

    manifest, folder = manifest_in(path), tmp_path / "unpacked"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    older = {name: folder / name for name in manifest.files} | {"vlserve/runtime/task.py": b""}
    before = {name: value for name, value in draft_of(manifest).items() if name != "capabilities"}
    old_manifest = manifest_in(pack_members(tmp_path / "old", before, older))
    assert old_manifest.capabilities is None and old_manifest.can("answer_log")
    del older["vlserve/runtime/answer_log.py"]
    assert not manifest_in(pack_members(tmp_path / "older", before, older)).can("answer_log")


def test_another_runtime_is_known_by_its_bytes(tmp_path: Path, handlers: Path) -> None:
    path = pack_archive(tmp_path, draft(), {"graphs/model.onnx": b"w"}, handlers)
    manifest = manifest_in(path)
    assert has_our_runtime(manifest)
    for name in ("vlserve/runtime/inputs.py", "vlserve/runtime/dropped_since.py"):
        files = manifest.files | {name: "0" * 64}
        assert not has_our_runtime(manifest.model_copy(update={"files": files}))


def test_a_graph_that_is_not_given_is_refused(tmp_path: Path, handlers: Path) -> None:
    with pytest.raises(ManifestInvalid, match=r"graphs/model\.onnx"):
        pack_archive(tmp_path / "out", draft(), {}, handlers)
    assert not (tmp_path / "out").exists()


def test_a_task_without_a_handler_file_is_refused(tmp_path: Path, handlers: Path) -> None:
    with pytest.raises(ExportError, match=r"handlers/paint\.py"):
        pack_archive(tmp_path, draft(task="paint"), {"graphs/model.onnx": b"w"}, handlers)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_zip(tmp_path / "m-1.mar", {"a": b"1", "b": tmp_path / "missing"})
    assert list(tmp_path.iterdir()) == []
