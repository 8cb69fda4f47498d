"""Outputs of a network's frozen part, computed once an item and kept on disk."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlserve.training.augment import Augmentation
from vlserve.training.plan import digest_of
from vlserve.training.samples import OnRead, Samples, run_by_name

ENCODE_BATCH = 16
Features = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class EncodedSamples:
    """Samples as the trained part of a network takes them: ``features`` (items, …) by name, and
    the titles, padded to the longest."""

    features: Features
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(
        self, rows: NDArray[np.int64], augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """What the trained part may take, by name. Features cannot be augmented."""
        assert augmentation is None, "features of images cannot be augmented"
        return {name: torch.from_numpy(x[rows]) for name, x in self.features.items()}


def encode(
    frozen: nn.Module, samples: Samples, cache: Path, on_read: OnRead | None = None
) -> EncodedSamples:
    """The outputs of ``frozen`` for every sample, from ``cache`` where it has them: it keeps them
    under a digest of the weights, the images and the titles, so that nothing in it can be stale."""
    everything = np.arange(len(samples))
    text = {
        name: x.numpy() for name, x in samples.inputs(everything).items() if name.startswith("text")
    }
    folder = cache / _digest(frozen, samples)
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            _write(frozen, samples, text, partial, on_read)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    features = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    return EncodedSamples({**features, **text}, samples.targets)


def _write(
    frozen: nn.Module, samples: Samples, text: Features, folder: Path, on_read: OnRead | None
) -> None:
    files: dict[str, Any] = {}
    for start, outputs in _outputs(frozen, samples, text):
        for name, output in outputs.items():
            array = output.numpy()
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy", "w+", array.dtype, (len(samples), *array.shape[1:])
                )
            files[name][start : start + len(array)] = array
        if on_read:
            on_read(min(start + ENCODE_BATCH, len(samples)), len(samples))
    for file in files.values():
        file.flush()


@torch.no_grad()
def _outputs(
    frozen: nn.Module, samples: Samples, text: Features
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Outputs of each batch, and the place of its first sample."""
    for start in range(0, len(samples), ENCODE_BATCH):
        rows = slice(start, start + ENCODE_BATCH)
        batch = {"image": samples.images[rows], **{name: x[rows] for name, x in text.items()}}
        yield start, run_by_name(frozen, {name: torch.from_numpy(x) for name, x in batch.items()})


def _digest(frozen: nn.Module, samples: Samples) -> str:
    digest = hashlib.sha256(digest_of(frozen.state_dict()).encode())
    digest.update(repr(samples.images.shape).encode())
    for image in samples.images:
        digest.update(image.tobytes())
    for ids in samples.text_ids:
        digest.update(ids.tobytes() + b"\n")
    return digest.hexdigest()
