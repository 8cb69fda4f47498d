"""A version's own number of threads, from the control service's file to the graph."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlserve.exporter.pack import HANDLERS_DIR

PROGRAM = """
import os, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import torchserve_handler

def told(folder, threads, around, log):
    print(threads, os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])
    sys.exit()

torchserve_handler.Answering = told
torchserve_handler.TorchServeHandler().initialize(
    SimpleNamespace(system_properties={"model_dir": "."}, metrics=None)
)
"""
"""In the place of TorchServe's program: what the handler opens an archive with."""


@pytest.mark.parametrize(("file_name", "threads"), [("m-7", "3"), ("m-6", "1")])
def test_a_worker_computes_on_its_version_s_threads(
    tmp_path: Path, file_name: str, threads: str
) -> None:
    folder, engine, program = tmp_path / "unpacked", tmp_path / "engine-0", tmp_path / "program.py"
    (folder / "MAR-INF").mkdir(parents=True)
    manifest = {"model": {"modelName": "m", "modelVersion": "7"}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (engine / "threads").mkdir(parents=True)
    (engine / "threads" / file_name).write_text("3\n", encoding="utf-8")
    program.write_text(PROGRAM, encoding="utf-8")
    all_versions = {"ENGINE_DIR": str(engine), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-P", "-m", "vlserve_worker.worker", str(program), str(HANDLERS_DIR)],
        cwd=folder,
        env={**os.environ, **all_versions},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert process.stdout.splitlines()[-1] == f"{threads} {threads} {threads}"
