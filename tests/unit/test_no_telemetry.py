"""ONNX Runtime's telemetry is off in every process of ours: what it keeps for it is not written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OPEN_A_SESSION = """
import onnx, onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
node = helper.make_node("Identity", ["a"], ["b"])
graph = helper.make_graph([node], "graph", [value("a")], [value("b")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
SWITCHES = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
"""Variables that turn it off."""


def written_by(program: str, folder: Path) -> list[str]:
    """The names of the files that ONNX Runtime writes for its telemetry."""
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    places = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", program], env=environment | places, check=True)
    return [file.name for file in folder.rglob("*") if file.is_file()]


@pytest.mark.parametrize("package", ["vlserve", "vlserve_worker"])
def test_nothing_is_kept_for_telemetry(package: str, tmp_path: Path) -> None:
    assert written_by(f"import {package}\n{OPEN_A_SESSION}", tmp_path) == []


def test_it_would_be_without_us(tmp_path: Path) -> None:
    assert ".ses" in written_by(OPEN_A_SESSION, tmp_path)
