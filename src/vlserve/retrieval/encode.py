"""What an archive's own code makes of a corpus, in shards; run in a process of its own.

``PYTHONPATH=FOLDER python -P encode.py FOLDER`` with an unpacked archive in FOLDER reads requests
(JSON lines of fields, ``…_path`` for a file's bytes) and writes a file a shard into
``--shards``: what there is, is kept. It imports nothing but the archive's frozen runtime.

A shard, 00000.npz and so on, holds of its items that could be read::

    rows            int64 (items,): which they are
    embedding       float32 (items, dim), unit vectors, where the archive has them
    <input>         what the graph ``fusion`` takes of them, one after the other
    lengths         int64 (items,): how many rows of those are each item's
    refused_rows, refused   which items could not be read, and why

Inputs of fusion are kept in half precision where this changes no match logit of the first items by
more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.body import parse_fields
from vlserve.runtime.errors import RequestError
from vlserve.runtime.folder import open_folder
from vlserve.runtime.inputs import TextInputs, VisualFields, VisualInputs
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task

if TYPE_CHECKING:  # runtimes of older archives call the module otherwise
    from vlserve.runtime.types import Arrays, Sample

SHARD = 64
BATCH = 8
TOLERANCE = 0.01
"""Of a match logit."""
OTHER = {"image": "text", "text": "image"}
Fields = Mapping[str, Any]


def main() -> None:
    """Print ``{"done": items so far, "bytes": of the shard}`` after each shard."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="an unpacked archive, first on the path")
    parser.add_argument("--kind", choices=tuple(OTHER), required=True)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--queries", type=Path, help="of the other kind; leave out: no fusion")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    task = open_folder(arguments.folder, arguments.threads, frozen=True).task
    items = [json.loads(line) for line in arguments.items.read_bytes().splitlines()]
    queries = arguments.queries and [
        json.loads(line) for line in arguments.queries.read_bytes().splitlines()
    ]
    encoder = Encoder(task, arguments.kind, fused=queries is not None)
    rounded = False
    for start in range(0, len(items), SHARD):
        file = arguments.shards / f"{start // SHARD:05}.npz"
        if not file.exists():
            shard = encoder.shard(items[start : start + SHARD], start)
            if start == 0 and queries:
                rounded = encoder.rounding(shard, queries) <= TOLERANCE
            _write(file, halved(shard, encoder.kept) if rounded else shard)
        elif start == 0:
            rounded = _is_half(file, encoder.kept)
        count = min(start + SHARD, len(items))
        print(json.dumps({"done": count, "bytes": file.stat().st_size}), flush=True)


class Encoder:
    """One kind of items through one archive."""

    def __init__(self, task: Task[Any], kind: str, *, fused: bool) -> None:
        self._task, self._kind = task, kind
        self._sides = {
            "image": _Visual(task) if takes(task.manifest, "image") else None,
            "text": _Text(task) if takes(task.manifest, "text") else None,
        }
        fusion = task.manifest.graphs["fusion"].inputs if fused else ()
        mine = {tensor.name for tensor in fusion} & self._known(kind)
        self.kept = tuple(sorted(name for name in mine if not name.endswith("_mask")))
        """Inputs of fusion that are the items'; masks follow from lengths."""

    def shard(self, items: Sequence[Fields], first: int) -> Arrays:
        """Encode items whose rows begin at ``first``."""
        reasons: dict[int, str] = {}
        samples: dict[int, Sample] = {}
        for row, fields in enumerate(items, start=first):
            try:
                samples[row] = self._side(self._kind).sample(fields)
            except (RequestError, OSError, ValueError) as error:
                reasons[row] = str(error)
        outputs: dict[int, Arrays] = {}
        rows = list(samples)
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            outputs |= self._outputs({row: samples[row] for row in chunk}, reasons)
        shard: Arrays = {
            "rows": np.array(list(outputs), dtype=np.int64),
            "refused_rows": np.array(list(reasons), dtype=np.int64),
            "refused": np.array(list(reasons.values()), dtype=np.str_),
        }
        if not outputs:
            return shard
        if f"{self._kind}_embedding" in next(iter(outputs.values())):
            vectors = np.stack(
                [item_outputs[f"{self._kind}_embedding"] for item_outputs in outputs.values()]
            )
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            shard["embedding"] = (vectors / norms).astype(np.float32)
        for name in self.kept:
            own = [item_outputs[name] for item_outputs in outputs.values()]
            lengths = np.array([len(item_outputs) for item_outputs in own], dtype=np.int64)
            if not np.array_equal(shard.setdefault("lengths", lengths), lengths):
                raise ValueError(f"{name} is of another length than {self.kept[0]}")
            shard[name] = np.concatenate(own)
        return shard

    def rounding(self, shard: Arrays, queries: Sequence[Fields]) -> float:
        """Return the largest change of a match logit that half precision makes, of the first
        items."""
        if "lengths" not in shard:
            return np.inf
        ends = np.cumsum(shard["lengths"])
        changes = [0.0]
        other_kind = OTHER[self._kind]
        for fields in queries:
            query = self._through(other_kind, [self._side(other_kind).sample(fields)])
            for start, end in list(zip([0, *ends[:-1]], ends, strict=True))[:BATCH]:
                exact = {name: shard[name][None, start:end] for name in self.kept}
                mask = np.ones((1, end - start), dtype=np.int64)
                exact[{"image": "visual_mask", "text": "text_mask"}[self._kind]] = mask
                half_precision = {name: _as_half(x).astype(x.dtype) for name, x in exact.items()}
                logits = [
                    self._task.run("fusion", query | own)["match_logits"][0, -1]
                    for own in (exact, half_precision)
                ]
                changes.append(abs(float(logits[0]) - float(logits[1])))
        return float(np.max(changes)) if np.isfinite(changes).all() else np.inf

    def _side(self, kind: str) -> Any:
        side = self._sides[kind]
        if side is None:
            raise ValueError(f"the archive takes no {kind}s")
        return side

    def _known(self, kind: str) -> set[str]:
        """Return names of everything that is known of an item before fusion."""
        graph = self._task.manifest.graphs.get(kind)
        outputs = {tensor.name for tensor in graph.outputs} if graph else set()
        names: frozenset[str] = self._side(kind).names
        return outputs | names

    def _outputs(self, samples: Mapping[int, Sample], reasons: dict[int, str]) -> dict[int, Arrays]:
        """Return the outputs of each row; where the batch fails each runs alone, and those that
        fail are refused."""
        try:
            arrays = self._through(self._kind, list(samples.values()))
        except Exception as error:  # each graph engine has its own
            if len(samples) > 1:
                alone = [self._outputs({row: sample}, reasons) for row, sample in samples.items()]
                return {
                    row: item_outputs for sample in alone for row, item_outputs in sample.items()
                }
            reasons |= dict.fromkeys(samples, f"the model failed on this item: {error}")
            return {}
        return {row: self._item(arrays, place) for place, row in enumerate(samples)}

    def _through(self, kind: str, samples: Sequence[Sample]) -> Arrays:
        arrays: Arrays = self._side(kind).collate(samples)
        if kind in self._task.manifest.graphs:
            arrays |= self._task.run(kind, arrays)
        return arrays

    def _item(self, arrays: Arrays, place: int) -> Arrays:
        """Return one item's arrays, without the padding that its neighbours gave it."""
        length = self._side(self._kind).length(arrays, place)
        sequences = self._side(self._kind).varying
        return {
            name: array[place][:length] if name in sequences else array[place]
            for name, array in arrays.items()
        }


class _Visual:
    names = frozenset({"image", "visual", "visual_mask", "boxes"})
    varying = frozenset({"visual", "boxes"})

    def __init__(self, task: Task[Any]) -> None:
        self._inputs = VisualInputs(task.manifest, task.backends)

    def sample(self, fields: Fields) -> Sample:
        values = {
            name.removesuffix("_path"): Path(value).read_bytes()
            if name.endswith("_path")
            else value
            for name, value in fields.items()
        }
        return self._inputs.sample(parse_fields(VisualFields, values))

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return self._inputs.collate(samples)

    def length(self, arrays: Arrays, place: int) -> int | None:
        return int(arrays["visual_mask"][place].sum()) if "visual_mask" in arrays else None


class _Text:
    names = frozenset({"text_ids", "text_mask", "text_length"})
    varying = frozenset({"text_ids", "text_states"})

    def __init__(self, task: Task[Any]) -> None:
        self._inputs = TextInputs(task.manifest, task.root)

    def sample(self, fields: Fields) -> Sample:
        return self._inputs.sample(fields["text"])

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        tokenise = getattr(self._inputs, "tokenise", None)  # older runtimes do so in sample
        return self._inputs.collate(tokenise(samples) if tokenise else samples)

    def length(self, arrays: Arrays, place: int) -> int:
        return int(arrays["text_length"][place])


def takes(manifest: Manifest, kind: str) -> bool:
    if kind == "text":
        return manifest.text is not None
    return manifest.image is not None or manifest.regions is not None


def halved(shard: Arrays, names: Sequence[str]) -> Arrays:
    return shard | {name: _as_half(shard[name]) for name in names if name in shard}


def _as_half(array: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16) if array.dtype == np.float32 else array


def _is_half(file: Path, names: Sequence[str]) -> bool:
    with np.load(file, allow_pickle=False) as shard:
        return any(shard[name].dtype == np.float16 for name in names if name in shard)


def _write(file: Path, shard: Arrays) -> None:
    """Write a shard, whose file appears whole."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as target:
        np.savez(target, **shard)  # type: ignore[arg-type]
        target.flush()
        os.fsync(target.fileno())
    partial.replace(file)


if __name__ == "__main__":
    main()
