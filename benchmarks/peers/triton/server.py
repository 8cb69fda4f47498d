"""Triton with its Python backend: binary tensors in; its dynamic batcher, two instances.

The server is the one inside NVIDIA's pytriton package, run as itself.
"""

import os
import shutil
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
SERVER = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver"
LIBRARIES = Path(sysconfig.get_path("purelib")) / "nvidia_pytriton.libs"


def _write_repository(folder: Path, workers: str) -> None:
    (folder / "tagger" / "1").mkdir(parents=True)
    shutil.copy(HERE / "model.py", folder / "tagger" / "1")
    config = (HERE / "config.pbtxt").read_text(encoding="utf-8").replace("WORKERS", workers)
    (folder / "tagger" / "config.pbtxt").write_text(config, encoding="utf-8")


def _write_backend(folder: Path) -> None:
    """The Python backend with the stub of this Python, as the server looks for it."""
    version = sysconfig.get_python_version()
    shutil.copytree(SERVER / "backends" / "python", folder / "python")
    stub = SERVER / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python")


def main() -> None:
    repository, backends = Path("repository").resolve(), Path("backends").resolve()
    _write_repository(repository, os.environ["BENCH_WORKERS"])
    _write_backend(backends)
    os.environ["LD_LIBRARY_PATH"] = str(LIBRARIES)
    server = SERVER / "bin" / "tritonserver"
    command = [
        str(server),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={os.environ['BENCH_PORT']}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    os.execv(server, command)


if __name__ == "__main__":
    main()
