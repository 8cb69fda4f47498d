"""Outputs of a network's frozen part, computed once an image or a title and kept on disk."""

import hashlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

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

FORMAT = b"3"
"""Of what is kept."""
ENCODE_BATCH = 16
REPORT_BATCHES = 8
RTOL, ATOL = 1e-4, 1e-4
"""How far a feature may be from what the network itself makes: its graph is what runs."""
Features = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class EncodedSamples:
    """Samples as the trained part of a network takes them: ``features`` (items, …) by name, and
    the titles, padded to the longest. ``rows`` (items,): which of the features by that name each
    item has, where several items share them."""

    features: Features
    targets: NDArray[np.int64]
    rows: Features = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(
        self, rows: NDArray[np.int64], augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """Return what the trained part may take, by name. Features cannot be augmented."""
        assert augmentation is None, "features of images cannot be augmented"
        return {
            name: torch.from_numpy(x[self.rows[name][rows] if name in self.rows else rows])
            for name, x in self.features.items()
        }


@dataclass(frozen=True)
class Graph:
    """A part of the frozen part, of the outputs that depend on the same inputs alone."""

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, batch: Features) -> dict[str, NDArray[Any]]:
        """Return its outputs by name."""
        feed = {name: batch[name] for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(list(self.outputs), feed), strict=True))


class Encoder:
    """The frozen part of a network, as ONNX graphs from the first batch on: six times as fast as
    eager on convolutions."""

    def __init__(self, frozen: nn.Module) -> None:
        self.frozen = frozen
        self._graphs: Sequence[Graph] = ()

    def graphs(self, first: Features) -> Sequence[Graph]:
        """Return its graphs, each of which answers ``first`` like the module itself: else
        TrainingError."""
        feed = {name: first[name] for name in taken_by(self.frozen, first)}
        expected = _run_eager(self.frozen, feed)
        if not self._graphs:
            self._graphs = _open_graphs(self.frozen, feed, tuple(expected))
        for graph in self._graphs:
            for name, outputs in graph.run(feed).items():
                _, wrong = compare(outputs, expected[name], RTOL, ATOL)
                if wrong:
                    raise TrainingError(
                        f"the frozen part's graph does not answer like it: {name}: {wrong}"
                    )
        return self._graphs


def encode(
    encoder: Encoder, samples: Samples, cache: Path, on_read: OnRead | None = None
) -> EncodedSamples:
    """Return the outputs of the encoder for every sample, from ``cache`` where it has them: it
    keeps them under a digest of the network, the images and the titles, so that nothing in it can
    be stale. What several samples share, an image or a title, is encoded once."""
    everything = np.arange(len(samples))
    text = {
        name: x.numpy() for name, x in samples.inputs(everything).items() if name.startswith("text")
    }
    folder = cache / _digest(encoder.frozen, samples)
    if not folder.is_dir():
        # not by the process's number: those of two containers may be the same
        partial = folder.with_name(f".{folder.name}-{uuid4().hex}")
        partial.mkdir(parents=True)
        try:
            _write(encoder, {"image": samples.images, **text}, partial, on_read)
            _appear(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    features = _read(folder, "features")
    return EncodedSamples({**features, **text}, samples.targets, _read(folder, "rows"))


def _appear(partial: Path, folder: Path) -> None:
    """Give a whole folder its name, unless another process was first: it made the same."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _read(folder: Path, kind: Literal["features", "rows"]) -> dict[str, NDArray[Any]]:
    files = sorted(folder.glob(f"*.{kind}.npy"))
    return {file.name.partition(".")[0]: np.load(file, mmap_mode="r") for file in files}


def _write(encoder: Encoder, inputs: Features, folder: Path, on_read: OnRead | None) -> None:
    graphs = encoder.graphs({name: x[:ENCODE_BATCH] for name, x in inputs.items()})
    plans = [(graph, *_distinct([inputs[name] for name in graph.inputs])) for graph in graphs]
    total, done = sum(len(places) for _, places, _ in plans), 0
    for graph, places, rows in plans:
        files: dict[str, Any] = {}
        for start in range(0, len(places), ENCODE_BATCH):
            batch = places[start : start + ENCODE_BATCH]
            part = {name: inputs[name][batch] for name in graph.inputs}
            for name, array in graph.run(part).items():
                if name not in files:
                    files[name] = np.lib.format.open_memmap(
                        folder / f"{name}.features.npy",
                        "w+",
                        array.dtype,
                        (len(places), *array.shape[1:]),
                    )
                files[name][start : start + len(array)] = array
            done += len(batch)
            if on_read and (start // ENCODE_BATCH % REPORT_BATCHES == 0 or done == total):
                on_read(done, total)
        for name, file in files.items():
            file.flush()
            np.save(folder / f"{name}.rows.npy", rows)


def _distinct(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of items whose rows no item before them has, and for every item the number
    of the one among them whose rows it has."""
    numbers: dict[bytes, int] = {}
    places, rows = list[int](), list[int]()
    for place, parts in enumerate(zip(*arrays, strict=True)):
        key = hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
        if key not in numbers:
            numbers[key] = len(places)
            places.append(place)
        rows.append(numbers[key])
    return np.array(places, dtype=np.int64), np.array(rows, dtype=np.int64)


def _open_graphs(frozen: nn.Module, features: Features, names: tuple[str, ...]) -> Sequence[Graph]:
    """Return ONNX Runtime sessions of any number of items and any length of text, one for the
    outputs that depend on the same inputs."""
    import onnxruntime
    from onnx.utils import Extractor

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
    model = program.model_proto
    by_inputs: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        by_inputs.setdefault(_inputs_of(model, name), []).append(name)
    graphs = []
    for inputs_of, outputs in by_inputs.items():
        part = Extractor(model).extract_model(list(inputs_of), outputs)
        session = onnxruntime.InferenceSession(part.SerializeToString(), options)
        graphs.append(Graph(session, inputs_of, tuple(outputs)))
    return graphs


def _inputs_of(model: Any, output: str) -> tuple[str, ...]:
    """Return the inputs of an ONNX model that an output depends on."""
    everything = frozenset(each.name for each in model.graph.input)
    sources = {name: frozenset([name]) for name in everything}
    for node in model.graph.node:
        origins = frozenset[str]().union(*(sources.get(name, frozenset()) for name in node.input))
        if any(attribute.HasField("g") for attribute in node.attribute):
            origins = everything  # what a branch reads from outside is not among its inputs
        sources |= dict.fromkeys(node.output, origins)
    return tuple(each.name for each in model.graph.input if each.name in sources[output])


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
    digest = hashlib.sha256(FORMAT + digest_of(frozen.state_dict()).encode())
    digest.update(repr(frozen).encode())  # which of the layers' states it gives
    digest.update(repr(samples.images.shape).encode())
    for image in samples.images:
        digest.update(image.tobytes())
    for ids in samples.text_ids:
        digest.update(ids.tobytes() + b"\n")
    return digest.hexdigest()
