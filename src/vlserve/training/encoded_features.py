"""Outputs of a network's frozen part, computed once an item and kept on disk."""

import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlserve.errors import TrainingError
from vlserve.exporter.convert import OPSET
from vlserve.exporter.parity import compare
from vlserve.training.plan import digest_of
from vlserve.training.samples import OnRead, Samples, run_by_name, taken_by
from vlserve.training.tagger_augmentation import Augmentation

ENCODE_BATCH = 16
REPORT_BATCHES = 8
RTOL, ATOL = 1e-4, 1e-4
"""How far a feature may be from what the network itself makes: its graph is what runs."""
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
        """Return what the trained part may take, by name. Features cannot be augmented."""
        assert augmentation is None, "features of images cannot be augmented"
        return {name: torch.from_numpy(x[rows]) for name, x in self.features.items()}


class Encoder:
    """The frozen part of a network, as an ONNX graph from the first batch on: six times as fast as
    eager on convolutions."""

    def __init__(self, frozen: nn.Module) -> None:
        self.frozen = frozen
        self._graph: tuple[Any, tuple[str, ...]] | None = None

    def outputs(
        self, samples: Samples, text: Features
    ) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield outputs of each batch by name, and the place of its first sample. TrainingError
        unless the first batch has those of the module itself."""
        for start in range(0, len(samples), ENCODE_BATCH):
            rows = slice(start, start + ENCODE_BATCH)
            batch = {"image": samples.images[rows], **{name: x[rows] for name, x in text.items()}}
            feed = {name: batch[name] for name in taken_by(self.frozen, batch)}
            expected = _run_eager(self.frozen, feed) if start == 0 else {}
            if self._graph is None:
                self._graph = _open_graph(self.frozen, feed, tuple(expected))
            session, names = self._graph
            outputs = dict(zip(names, session.run(None, feed), strict=True))
            for name, reference in expected.items():
                _, wrong = compare(outputs[name], reference, RTOL, ATOL)
                if wrong:
                    raise TrainingError(
                        f"the frozen part's graph does not answer like it: {name}: {wrong}"
                    )
            yield start, outputs


def encode(
    encoder: Encoder, samples: Samples, cache: Path, on_read: OnRead | None = None
) -> EncodedSamples:
    """Return the outputs of the encoder for every sample, from ``cache`` where it has them: it
    keeps them under a digest of the weights, the images and the titles, so that nothing in it can
    be stale."""
    everything = np.arange(len(samples))
    text = {
        name: x.numpy() for name, x in samples.inputs(everything).items() if name.startswith("text")
    }
    folder = cache / _digest(encoder.frozen, samples)
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            _write(encoder, samples, text, partial, on_read)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    features = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    return EncodedSamples({**features, **text}, samples.targets)


def _write(
    encoder: Encoder, samples: Samples, text: Features, folder: Path, on_read: OnRead | None
) -> None:
    files: dict[str, Any] = {}
    for start, outputs in encoder.outputs(samples, text):
        for name, array in outputs.items():
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy", "w+", array.dtype, (len(samples), *array.shape[1:])
                )
            files[name][start : start + len(array)] = array
        count = min(start + ENCODE_BATCH, len(samples))
        if on_read and (count % (REPORT_BATCHES * ENCODE_BATCH) == 0 or count == len(samples)):
            on_read(count, len(samples))
    for file in files.values():
        file.flush()


def _open_graph(
    frozen: nn.Module, features: Features, names: tuple[str, ...]
) -> tuple[Any, tuple[str, ...]]:
    """Return an ONNX Runtime session of any number of items and any length of text, with the names
    of its outputs."""
    import onnxruntime

    inputs = {name: torch.from_numpy(x) for name, x in features.items()}
    twice = {name: torch.cat([x, x]) for name, x in inputs.items()}  # 1 would be a constant
    batch, length = torch.export.Dim("batch"), torch.export.Dim("text")
    axes = {
        name: {0: batch, 1: length} if name.startswith("text") and x.ndim > 1 else {0: batch}
        for name, x in twice.items()
    }
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            frozen,
            (),
            kwargs=twice,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=list(twice),
            output_names=list(names),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options), names


@torch.no_grad()
def _run_eager(frozen: nn.Module, features: Features) -> dict[str, NDArray[Any]]:
    inputs = {name: torch.from_numpy(x) for name, x in features.items()}
    return {name: x.numpy() for name, x in run_by_name(frozen, inputs).items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose remarks are no news: what matters is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _digest(frozen: nn.Module, samples: Samples) -> str:
    digest = hashlib.sha256(digest_of(frozen.state_dict()).encode())
    digest.update(repr(samples.images.shape).encode())
    for image in samples.images:
        digest.update(image.tobytes())
    for ids in samples.text_ids:
        digest.update(ids.tobytes() + b"\n")
    return digest.hexdigest()
