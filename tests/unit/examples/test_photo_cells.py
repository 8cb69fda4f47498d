"""examples/photo_cells.py on drawn photos: what it writes is what `vlserve train s2` reads."""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.tiny_models import EXPORT
from vlserve.exporter.probes import drawn_image
from vlserve.exporter.recipe import load_recipe
from vlserve.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput
from vlserve.training.finetune.run import finetune
from vlserve.training.pretrained import image_weights

pytestmark = pytest.mark.training

EXAMPLE = EXPORT.parent / "examples" / "photo_cells.py"
CAPTIONS = ["A red dog.", "a dog runs", "One more dog"]


def write_photos(folder: Path, name: str, seeds: range) -> Path:
    lines = []
    for seed in seeds:
        (folder / f"{seed}.img").write_bytes(base64.b64decode(drawn_image(seed)))
        lines.append({"id": f"photo {seed}", "img": f"{seed}.img", "captions": CAPTIONS})
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example wrote of three and two photos in its parent."""
    folder = tmp_path_factory.mktemp("photos")
    files = [write_photos(folder, "train", range(3)), write_photos(folder, "val", range(3, 5))]
    options = ["--out", folder / "cells", "--captions", "2", "--least", "6"]
    subprocess.run([sys.executable, EXAMPLE, *files, *options], check=True, timeout=120)
    return folder / "cells"


def cells_seen(network: EfficientNetLite, seed: int) -> NDArray[np.float32]:
    """Of a drawn photo: (features, rows, columns)."""
    bare = ImageInput(height=160, width=160, mean=(0, 0, 0), std=(1 / 255,) * 3)
    pixels = decode(base64.b64decode(drawn_image(seed)), bare)
    with torch.no_grad():
        seen = network.feature_map(torch.from_numpy((pixels - 127) / 128).unsqueeze(0))[0]
    array: NDArray[np.float32] = seen.numpy()
    return array


def test_each_row_is_a_cell_by_the_training_photos_mean_and_deviation(cells: Path) -> None:
    network = EfficientNetLite(EfficientNetLiteConfig()).eval()
    network.load_state_dict(image_weights())
    train = np.stack([cells_seen(network, seed) for seed in range(3)])
    mean, deviation = train.mean((0, 2, 3)), train.std((0, 2, 3)) + 1e-3
    kept = np.load(cells / "mean_and_deviation.npy")
    np.testing.assert_allclose(kept, np.stack([mean, deviation]), rtol=1e-3, atol=1e-4)
    rows, seen = (
        np.load(cells / lines_of(cells / "val.jsonl")[0]["features"]),
        cells_seen(network, 3),
    )
    assert rows.shape == (25, 1280)
    for row in range(5):
        for column in range(5):
            cell = rows[5 * row + column] * deviation + mean
            np.testing.assert_allclose(cell, seen[:, row, column], rtol=1e-3, atol=1e-3)


def test_lines_and_words_are_those_of_the_files(cells: Path) -> None:
    train, val = lines_of(cells / "train.jsonl"), lines_of(cells / "val.jsonl")
    assert [line["id"] for line in train + val] == [f"photo {seed}" for seed in range(5)]
    assert [line["captions"] for line in train + val] == [CAPTIONS[:2]] * 3 + [CAPTIONS] * 2
    config: Mapping[str, Any] = json.loads((cells / "config.json").read_text(encoding="utf-8"))
    assert config["words"] == ["<unk>", "<pad>", "<bos>", "<eos>", "a", "dog"]


def test_a_captioner_of_the_config_learns_from_them(cells: Path, tmp_path: Path) -> None:
    files = (cells / "config.json", cells / "train.jsonl", cells / "val.jsonl")
    options = {"epochs": 1, "batch_size": 2}
    report = finetune(load_recipe("s2", EXPORT), *files, tmp_path / "run", options=options)
    assert report.objective == "caption" and not report.bad_lines


@pytest.mark.parametrize(
    ("val", "out", "said"),
    [("val.jsonl", ".", "holds a file that is read"), ("a/train.jsonl", "b", "both files are")],
)
def test_no_file_is_written_over_another(tmp_path: Path, val: str, out: str, said: str) -> None:
    train = write_photos(tmp_path, "train", range(1))
    before = train.read_bytes()
    command = [sys.executable, EXAMPLE, train, tmp_path / val, "--out", tmp_path / out]
    process = subprocess.run(
        command, check=False, timeout=120, capture_output=True, text=True, encoding="utf-8"
    )
    assert process.returncode == 2 and said in process.stderr
    assert train.read_bytes() == before
