"""Graphs of an archive against its manifest; what is unpacked, and opened."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.archive_members import Members, listed, written
from vlserve.runtime.archive import check_folder, unpack_archive, verify_archive
from vlserve.runtime.errors import (
    ArchiveTampered,
    ArchiveUnreadable,
    ManifestInvalid,
)
from vlserve.runtime.folder import open_folder
from vlserve.runtime.task import difference
from vlserve.runtime.types import Request

INPUT = ("x", TensorProto.FLOAT, ["batch", 3, "text"])
OUTPUT = ("y", TensorProto.FLOAT, ["batch", 3, "text"])


def onnx_graph(input_info: Any = INPUT, output_info: Any = OUTPUT) -> bytes:
    node = helper.make_node("Identity", [input_info[0]], [output_info[0]])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*input_info)],
        [helper.make_tensor_value_info(*output_info)],
        [onnx.numpy_helper.from_array(np.zeros(2, np.float32), "weight")],
    )
    opsets = [helper.make_opsetid("", 20)]
    raw: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return raw


def with_onnx(members: Members, raw: bytes) -> Members:
    def tensor(name: str) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "dims": ["batch", 3, "text"]}

    tensors = {"inputs": [tensor("x")], "outputs": [tensor("y")]}
    graph = {"file": "graphs/model.onnx", "format": "onnx", **tensors}
    return listed(members | {"graphs/model.onnx": raw}, graphs={"model": graph})


def test_an_onnx_graph_that_agrees(members: Members, tmp_path: Path) -> None:
    verify_archive(written(tmp_path, with_onnx(members, onnx_graph())))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (onnx_graph(("x", 1, [1, 3, "text"])), r"input x axis 0 \(batch\) is static at 1"),
        (onnx_graph(("x", 1, ["batch", 3, 15])), r"input x axis 2 \(text\) is static at 15"),
        (onnx_graph(("x", 1, ["batch", 4, "text"])), "input x axis 1 is 4, not 3"),
        (onnx_graph(("x", 1, ["batch", "any", "text"])), "input x axis 1 is None, not 3"),
        (onnx_graph(("x", 1, ["batch", 3])), "input x has 2 axes"),
        (onnx_graph(("x", 7, ["batch", 3, "text"])), "input x is int64"),
        (onnx_graph(("z", 1, ["batch", 3, "text"])), "input x is not in the graph"),
        (onnx_graph(output_info=("y", 1, [1, 3, "text"])), "output y axis 0"),
        (onnx_graph(output_info=("z", 1, ["batch", 3, "text"])), "output z is not in the manifest"),
    ],
)
def test_onnx_graphs_that_disagree(members: Members, tmp_path: Path, raw: bytes, why: str) -> None:
    with pytest.raises(ManifestInvalid, match=why):
        verify_archive(written(tmp_path, with_onnx(members, raw)))


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"not a graph at all"])
def test_what_is_no_onnx_graph(members: Members, tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ArchiveUnreadable, match=r"model\.onnx is not an ONNX graph"):
        verify_archive(written(tmp_path, with_onnx(members, raw)))


def test_weights_outside_the_archive(members: Members, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(onnx_graph())
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "../../etc/weights")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    raw = model.SerializeToString()
    with pytest.raises(ManifestInvalid, match="no member"):
        verify_archive(written(tmp_path, with_onnx(members, raw)))
    weight.external_data[0].value = "model.data"
    inside = members | {"graphs/model.data": b"\0" * 8}
    verify_archive(written(tmp_path, with_onnx(inside, model.SerializeToString())))


def test_unpacked_is_the_same_bytes(echo_archive: Path, members: Members, tmp_path: Path) -> None:
    manifest = unpack_archive(echo_archive, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert files == members
    assert check_folder(folder) == manifest


def test_nothing_is_unpacked_over_something(echo_archive: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ArchiveUnreadable, match="not empty"):
        unpack_archive(echo_archive, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: append(folder / "graphs/model.echo.json"), "not the file"),
        (lambda folder: append(folder / "vlserve/runtime/image.py"), "not the file"),
        (lambda folder: (folder / "assets/vocabulary.json").unlink(), "missing"),
        (lambda folder: (folder / "vlserve/runtime/more.py").touch(), "not in the manifest"),
    ],
)
def test_a_folder_is_checked_again_when_opened(
    echo_folder: Path, tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(echo_folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    open_folder(folder)
    change(folder)
    with pytest.raises(ArchiveTampered, match=why):
        open_folder(folder)


def test_what_is_no_folder_of_an_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnreadable, match="not an unpacked archive"):
        open_folder(tmp_path)


def test_an_opened_folder_answers(echo_folder: Path) -> None:
    pipeline = open_folder(echo_folder)
    for probe in pipeline.manifest.probes:
        (answer,) = pipeline.run([Request(probe.fields)]).answers
        assert isinstance(answer, dict)
        assert difference(probe.answer, answer) is None


def test_frozen_means_the_archives_own_code(echo_folder: Path) -> None:
    with pytest.raises(ArchiveTampered, match="not from the archive"):
        open_folder(echo_folder, frozen=True)
    code = (
        "import sys; from pathlib import Path; from vlserve.runtime.folder import open_folder;"
        "open_folder(Path(sys.argv[1]), frozen=True)"
    )
    subprocess.run(
        [sys.executable, "-P", "-B", "-c", code, str(echo_folder)],
        env={"PYTHONPATH": str(echo_folder)},
        check=True,
    )


def test_an_archive_of_torchserve_s_own_archiver_is_told_what_to_do(tmp_path: Path) -> None:
    archive = tmp_path / "densenet.mar"
    with zipfile.ZipFile(archive, "w") as zip_file:
        zip_file.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "densenet"}}')
        zip_file.writestr("handler.py", "")
        zip_file.writestr("densenet161.pth", b"weights")
    with pytest.raises(ArchiveUnreadable) as error:
        verify_archive(archive)
    message = str(error.value)
    for part in ("no manifest.json", "torch-model-archiver", "vlserve adopt", "densenet161.pth"):
        assert part in message
    assert len(message.splitlines()) == 1
