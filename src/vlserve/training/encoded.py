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
from vlserve.training.augment import Augmentation
from vlserve.training.plan import digest_of
from vlserve.training.samples import OnRead, Samples, run_by_name, taken_by

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
        for name, array in outputs.items():
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy", "w+", array.dtype, (len(samples), *array.shape[1:])
                )
            files[name][start : start + len(array)] = array
        done = min(start + ENCODE_BATCH, len(samples))
        if on_read and (done % (REPORT_BATCHES * ENCODE_BATCH) == 0 or done == len(samples)):
            on_read(done, len(samples))
    for file in files.values():
        file.flush()


def _outputs(
    frozen: nn.Module, samples: Samples, text: Features
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Outputs of each batch, and the place of its first sample."""
    session: Any = None
    names: tuple[str, ...] = ()
    for start in range(0, len(samples), ENCODE_BATCH):
        rows = slice(start, start + ENCODE_BATCH)
        batch = {"image": samples.images[rows], **{name: x[rows] for name, x in text.items()}}
        given = {name: batch[name] for name in taken_by(frozen, batch)}
        if session is None:
            session, names = _open_graph(frozen, given)
        yield start, dict(zip(names, session.run(None, given), strict=True))


def _open_graph(frozen: nn.Module, given: Features) -> tuple[Any, tuple[str, ...]]:
    """The module as an ONNX Runtime session, six times as fast as eager on convolutions, and the
    names of its outputs. TrainingError unless it answers like the module."""
    import onnxruntime

    inputs = {name: torch.from_numpy(x) for name, x in given.items()}
    twice = {name: torch.cat([x, x]) for name, x in inputs.items()}  # 1 would be a constant
    with torch.no_grad(), _quiet():
        expected = {name: x.numpy() for name, x in run_by_name(frozen, inputs).items()}
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            frozen,
            (),
            kwargs=twice,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={name: {0: batch} for name in twice},
            input_names=list(twice),
            output_names=list(expected),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    for (name, reference), got in zip(
        expected.items(), session.run(None, dict(given)), strict=True
    ):
        _, wrong = compare(got, reference, RTOL, ATOL)
        if wrong:
            raise TrainingError(f"the frozen part's graph does not answer like it: {name}: {wrong}")
    return session, tuple(expected)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are no news: what matters is compared."""
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
