"""What fewer keys cost a tagger in accuracy: prints the second table of docs/attention.md.

    nice -n 5 .venv/bin/python -m benchmarks.models.attention_quality [--data FOLDER]

Trains a small visualbert_coattention tagger with each kind of keys, on the drawn demo set or on a
folder with train.jsonl and val.jsonl (one label an item): the same items, seeds, steps. Visual
tokens are the cells of a small ResNet, trained with it from nothing. The difference from full keys
is taken item by item and seed by seed, with a 95 % bootstrap interval over both.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import CHECKOUT
from vlserve.exporter.recipe import load_recipe
from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.families.grid import GridExtractor
from vlserve.families.single_stream import LogitsGraph, SingleStreamNetwork
from vlserve.models.resnet import ResNetConfig
from vlserve.runtime.manifest import ImageInput
from vlserve.training.data import ItemFile, count_labels, read_items
from vlserve.training.demo_data import write_demo_data
from vlserve.training.samples import decode_images

RECIPE = load_recipe("visualbert_coattention", CHECKOUT / "export")
KINDS: Mapping[str, Mapping[str, Any]] = {
    "full": {"variant": "full"},
    "chunk 4": {"variant": "chunk", "chunk": 4},
    "sparse 4": {"variant": "sparse", "chunk": 4},
}
IMAGE = ImageInput(height=48, width=64)
RESNET = ResNetConfig(layers=(1, 1), width=16)
HIDDEN, LAYERS, LONGEST = 64, 2, 48
BATCH, LEARNING_RATE = 32, 1e-3
RESAMPLES = 2000


@dataclass(frozen=True)
class Items:
    """Images (items, 3, height, width), token ids and mask (items, text), label (items,)."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    labels: Tensor

    def batches(self, order: Sequence[int]) -> Iterator["Items"]:
        for start in range(0, len(order), BATCH):
            rows = torch.tensor(order[start : start + BATCH])
            mask = self.mask[rows]
            longest = int(mask.sum(dim=1).max())
            text = self.ids[rows, :longest], mask[:, :longest]
            yield Items(self.images[rows], *text, self.labels[rows])


class Tagger(nn.Module):
    """A ResNet and the network that reads its cells."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        network = RECIPE.build(config)
        assert isinstance(network, SingleStreamNetwork)
        self.grid = GridExtractor(RESNET)
        self.graph = LogitsGraph(network, "tag")

    def forward(self, items: Items) -> Tensor:
        visual = self.grid(items.images)
        everything = torch.ones_like(visual[:, :, 0], dtype=torch.int64)
        logits: Tensor = self.graph(items.ids, items.mask, visual, everything)
        return logits


def tokens_of(file: ItemFile) -> list[str]:
    """Every character of the titles, to begin and to go on with."""
    alphabet = sorted({character for item in file.items for character in item.text.lower()})
    characters = [character for character in alphabet if not character.isspace()]
    return [*SPECIAL, *characters, *(f"##{character}" for character in characters)]


def read(file: ItemFile, tokenizer: Tokenizer, labels: Sequence[str]) -> Items:
    file, images = decode_images(file, IMAGE)
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), length=LONGEST)
    encoded = tokenizer.encode_batch([item.text for item in file.items])
    return Items(
        torch.from_numpy(np.stack([images[item.line] for item in file.items])),
        torch.tensor([text.ids for text in encoded]),
        torch.tensor([text.attention_mask for text in encoded]),
        torch.tensor([labels.index(item.labels[0]) for item in file.items]),
    )


def config_of(keys: Mapping[str, Any], tokens: Sequence[str], labels: Sequence[str]) -> Any:
    encoder = {
        "vocabulary": len(tokens),
        "positions": LONGEST,
        "token_types": 2,
        "hidden": HIDDEN,
        "layers": LAYERS,
        "heads": 4,
        "intermediate": 2 * HIDDEN,
        "first_cross_layer": LAYERS,
        "memory_hidden": HIDDEN,
    }
    return {
        "task": "tag",
        "vocabulary": list(tokens),
        "max_length": LONGEST,
        "labels": list(labels),
        "classes": len(labels),
        "encoder": encoder,
        "visual_dim": RESNET.features,
        "keys": dict(keys),
    }


def train(config: Mapping[str, Any], items: Items, epochs: int, seed: int) -> Tagger:
    torch.manual_seed(seed)
    tagger = Tagger(config)
    steps = epochs * -(-len(items.labels) // BATCH)
    optimizer = torch.optim.AdamW(tagger.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    tagger.train()
    for _ in range(epochs):
        for batch in items.batches(torch.randperm(len(items.labels)).tolist()):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(tagger(batch), batch.labels))
            nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return tagger.eval()


@torch.inference_mode()
def hits(tagger: Tagger, items: Items) -> NDArray[np.float64]:
    """1 for each item whose best label is right, (items,)."""
    order = range(len(items.labels))
    right = [tagger(batch).argmax(dim=1) == batch.labels for batch in items.batches(order)]
    return torch.cat(right).double().numpy()


def with_interval(values: NDArray[np.float64]) -> str:
    """Of (seeds, items): the mean, and between what it would be for other seeds and items."""
    random, (seeds, items) = np.random.default_rng(0), values.shape
    means = [
        values[random.integers(0, seeds, seeds)][:, random.integers(0, items, items)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="train.jsonl and val.jsonl; default: drawn")
    parser.add_argument("--items", type=int, default=1200, help="to draw; one in six is for val")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vlserve-attention-") as scratch:
        folder = options.data or write_demo_data(Path(scratch), items=options.items).train.parent
        files = [read_items(folder / name) for name in ("train.jsonl", "val.jsonl")]
        labels, tokens = list(count_labels(files[0].items)), tokens_of(files[0])
        train_set, val = (read(file, wordpiece(tokens), labels) for file in files)
    rows, columns = RESNET.feature_map(IMAGE.height, IMAGE.width)
    print(f"{len(train_set.labels)} items to train on, {len(val.labels)} to judge by,", end=" ")
    print(f"{rows} x {columns} cells\n")
    print(
        "| keys | accuracy by seed | mean | difference from full |\n|---|---|---|---|", flush=True
    )
    full: NDArray[np.float64] | None = None
    for kind, keys in KINDS.items():
        start, config = time.monotonic(), config_of(keys, tokens, labels)
        taggers = (train(config, train_set, options.epochs, seed) for seed in range(options.seeds))
        right = np.stack([hits(tagger, val) for tagger in taggers])  # (seeds, items)
        full = right if full is None else full
        by_seed = ", ".join(f"{mean:.3f}" for mean in right.mean(axis=1))
        difference = "" if kind == "full" else with_interval(right - full)
        print(f"| {kind} | {by_seed} | {right.mean():.3f} | {difference} |", flush=True)
        print(f"{kind}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
