"""The recorded files of tests/recorded/, unpacked: what earlier states of the code left on disk."""

import tarfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recorded"
RECORDINGS = tuple(sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir()))
"""One folder for each state of the code; tests/recorded/README.md lists them."""

LOGS = Path(".vlserve/logs")
STORE = Path("model_store")


def unpack(recording: str, project: Path) -> Path:
    """Lay the model store and the logs of ``recording`` out in ``project``, and return that."""
    project.mkdir(parents=True, exist_ok=True)
    with tarfile.open(FOLDER / recording / "stack.tar.gz") as files:
        files.extractall(project, filter="data")
    return project


def tuning_file(recording: str) -> Path:
    return FOLDER / recording / "tagger-1.tuning.json"
