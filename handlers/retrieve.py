"""Retrieval: a text, or an image (or its features) -> the items of an index that go with it best.

`vlserve index` writes the index into the archive, under assets/index::

    ids.json          the items' names, in order
    embedding.npy     float32 (items, dim), unit vectors, where the model has such a space
    neighbours.faiss  a graph over them, of many items
    <input>.npy       what ``fusion`` takes of the items, one after the other
    offsets.npy       int64 (items + 1,): rows offsets[i] to offsets[i + 1] of those are item i's
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vlserve.runtime.body import TextField, WholeNumber
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.inputs import TextInputs, VisualFields, VisualInputs
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import DEFAULT_TOP_K, best, check_top_k, finite
from vlserve.runtime.task import Task

if TYPE_CHECKING:  # `vlserve index` packs this file with an older archive's frozen runtime too
    from vlserve.runtime.manifest import TensorSpec
    from vlserve.runtime.types import Answer, Arrays, Backend, Sample

FOLDER = "assets/index"
MAX_QUOTED_CHARS = 50
"""Most characters of a caller's own words in a message."""
MAX_LISTED_BYTES = 2**22
"""Most bytes of a form's list of candidates, which is parsed whole."""
MAX_TOP_K = 1000
"""Most items of an answer: the time of a search in a graph grows with their square."""
MAX_RERANKED = 64
"""Most items of an answer that ``fusion`` ranks, unless the index's ``rerank`` is larger; a model
without vectors holds every item against a query anyway."""
FUSION_BATCH = 16
"""Items that are held against a query in one run."""
VARIABLE = ("text", "regions")
"""Axes whose length each item and each query has for itself."""
COSINE, LOGIT, BOTH = "cosine", "match_logit", "match_logit + cosine"
Rows = NDArray[np.int64]
Float64Array = NDArray[np.float64]


class IndexOptions(BaseModel):
    """The manifest's option ``index``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Literal["image", "text"]
    rerank: int = Field(ge=0)
    """The nearest so many are held against the query by ``fusion``; 0 where there is none. A model
    without vectors holds every item, or the request's candidates."""


def _listed(value: Any) -> Any:
    """Read a list, which a form brings as JSON. Wrong names end it here: one error for each would
    be kept."""
    if isinstance(value, list) and not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list of names")
    if not isinstance(value, bytes | bytearray):
        return value
    if len(value) > MAX_LISTED_BYTES:
        raise ValueError(f"has {len(value)} bytes, the limit is {MAX_LISTED_BYTES}")
    try:
        return _listed(json.loads(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not a JSON list: {error}") from error


class RetrieveFields(VisualFields):
    """What a client sends: a text, or an image, or its features."""

    text: TextField | None = None
    top_k: WholeNumber | None = None
    candidates: Annotated[list[str], BeforeValidator(_listed)] | None = None
    """Names of the items to choose from; by default all."""


class Found(BaseModel):
    id: str
    score: float
    """What items are ranked by."""
    cosine: float | None = None
    """Of both unit vectors; where the model has them."""


class Retrieved(BaseModel):
    """Best first."""

    ranked_by: str
    """``cosine``, or with what ``fusion`` says of the nearest: ``match_logit``, or
    ``match_logit + cosine``."""
    results: list[Found]


class RetrieveTask(Task[RetrieveFields]):
    """Graphs: ``image`` and ``text``, with ``image_embedding`` and ``text_embedding``
    (batch, dim), and ``fusion`` with ``match_logits`` (batch, 1 or 2), each only where there is
    one. Queries of the index's own kind are ranked by cosine alone."""

    fields = RetrieveFields
    answer = Retrieved

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        try:
            self._options = IndexOptions.model_validate(manifest.options.get("index"))
        except ValidationError as error:
            raise ManifestInvalid(f"options index: {error.errors()[0]['msg']}") from error
        self._ranked_by = manifest.options.get("retrieval_score")
        if self._options.rerank and self._ranked_by not in (LOGIT, BOTH):
            raise ManifestInvalid(f"options retrieval_score: must be {LOGIT} or {BOTH}")
        self._index = Index(root / FOLDER)
        self._places = {name: place for place, name in enumerate(self._index.ids)}
        visual = manifest.image is not None or manifest.regions is not None
        self._visual = VisualInputs(manifest, backends) if visual else None
        self._text = TextInputs(manifest, root) if manifest.text else None

    def open_inputs(self) -> None:
        """Leave the inputs to the steps below: a request brings one of two kinds, and the runtimes
        of older archives have no default steps."""

    def preprocess(self, fields: RetrieveFields) -> Sample:
        visual = any(x is not None for x in (fields.image, fields.features, fields.boxes))
        if visual == (fields.text is not None):
            raise _invalid("send a text, an image, or its features: one of them")
        kind = "image" if visual else "text"
        if not self._takes(kind):
            raise _invalid(f"{kind}: this index of {self._options.of}s is not searched by {kind}s")
        among = self._among(fields.candidates)
        choices = len(self._index.ids) if among is None else len(among)
        check_top_k(fields.top_k, min(choices, self._most_found(kind)))
        sample: Sample = {"among": np.arange(0) if among is None else among}
        sample["top_k"] = np.array(fields.top_k or DEFAULT_TOP_K)
        if fields.text is not None:
            assert self._text is not None
            return sample | self._text.sample(fields.text)
        assert self._visual is not None
        return sample | self._visual.sample(fields)

    def _takes(self, kind: str) -> bool:
        if (kind == "text" and self._text is None) or (kind == "image" and self._visual is None):
            return False
        if kind != self._options.of and self._options.rerank:
            return True
        return self._index.vectors is not None and kind in self.manifest.graphs

    def _most_found(self, kind: str) -> int:
        has_vectors = self._index.vectors is not None and kind in self.manifest.graphs
        if kind != self._options.of and self._options.rerank and has_vectors:
            return min(max(self._options.rerank, MAX_RERANKED), MAX_TOP_K)
        return MAX_TOP_K

    def _among(self, candidates: Sequence[str] | None) -> Rows | None:
        if candidates is None:
            return None
        unknown = [name for name in candidates if name not in self._places]
        if unknown or not candidates:
            reason = f"no item {unknown[0][:MAX_QUOTED_CHARS]!r}" if unknown else "none"
            raise _invalid(f"candidates: {reason}")
        return np.unique([self._places[name] for name in candidates])

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return self._text.tokenise(samples) if self._text else samples

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return arrays, those of each kind with the rows that are its: of ``image_rows`` and
        ``text_rows``. ``among`` is padded by -1."""
        texts = np.array(["text_ids" in sample for sample in samples])
        widest = max(len(sample["among"]) for sample in samples)
        arrays: Arrays = {
            "image_rows": np.flatnonzero(~texts),
            "text_rows": np.flatnonzero(texts),
            "top_k": np.stack([sample["top_k"] for sample in samples]),
            "among": np.stack([_padded(sample["among"], widest) for sample in samples]),
        }
        for inputs, rows in ((self._visual, "image_rows"), (self._text, "text_rows")):
            if inputs is not None and len(arrays[rows]):
                arrays |= inputs.collate([samples[row] for row in arrays[rows]])
        return arrays

    def infer(self, arrays: Arrays) -> Arrays:
        rankings: dict[int, tuple[Rows, Float64Array, Float64Array]] = {}
        for kind in ("image", "text"):
            rows = arrays[f"{kind}_rows"]
            if len(rows):
                outputs = arrays | (self.run(kind, arrays) if kind in self.manifest.graphs else {})
                for place, row in enumerate(rows):
                    query = Query(kind, outputs, place)
                    among = arrays["among"][row]
                    among = among[among >= 0]
                    rankings[int(row)] = self._ranked(query, among, int(arrays["top_k"][row]))
        width = max(len(rows) for rows, _, _ in rankings.values())
        columns = zip(*(rankings[row] for row in range(len(rankings))), strict=True)
        names = ("items", "scores", "cosines")
        return {
            name: np.stack([_padded(row_values, width) for row_values in column])
            for name, column in zip(names, columns, strict=True)
        }

    def _ranked(
        self, query: Query, among: Rows, top_k: int
    ) -> tuple[Rows, Float64Array, Float64Array]:
        """Return the best items with their scores and cosines, which are NaN where there are
        none."""
        rerank = self._options.rerank if query.kind != self._options.of else 0
        vector = query.arrays.get(f"{query.kind}_embedding")
        if self._index.vectors is None or vector is None:
            items = among if len(among) else np.arange(len(self._index.ids))
            cosines = np.full(len(items), np.nan)
        else:
            nearest = max(top_k, rerank)
            items, cosines = self._index.nearest(vector[query.place], nearest, among)
        scores = cosines
        if rerank:
            scores = self._match_logits(query, items)
            if self._ranked_by == BOTH:
                scores = scores + cosines
        order = best(finite(scores), top_k)
        return items[order], scores[order], cosines[order]

    def _match_logits(self, query: Query, items: Rows) -> Float64Array:
        """Return the logits of each item with the query; the query's own graph has run once for all
        of them."""
        tensors = self.manifest.graphs["fusion"].inputs
        logits = []
        for start in range(0, len(items), FUSION_BATCH):
            chunk = items[start : start + FUSION_BATCH]
            arrays = self._index.inputs(chunk, tensors, self._widths())
            for tensor in tensors:
                if tensor.name not in arrays:
                    own = query.own(tensor, self._widths())
                    arrays[tensor.name] = np.repeat(own, len(chunk), axis=0)
            logits.append(self.run("fusion", arrays)["match_logits"][:, -1])
        return np.concatenate(logits).astype(np.float64)

    def _widths(self) -> Mapping[str, int]:
        """Return axes that have one length, whatever is in them."""
        text = self.manifest.text
        return {"text": text.max_length} if text and text.pad_to_max else {}

    def postprocess(self, outputs: Arrays, index: int, fields: RetrieveFields) -> Answer:
        same = (fields.text is not None) == (self._options.of == "text")
        reranked = self._options.rerank and not same
        results = []
        columns = (outputs[name][index] for name in ("items", "scores", "cosines"))
        for item, score, cosine in zip(*columns, strict=True):
            if item >= 0:
                result: dict[str, Any] = {"id": self._index.ids[item], "score": float(score)}
                if np.isfinite(cosine):
                    result["cosine"] = float(cosine)
                results.append(result)
        return {"ranked_by": self._ranked_by if reranked else COSINE, "results": results}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {result["id"]: result["score"] for result in answer["results"]}

    @classmethod
    def examples(cls, drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
        (everything,) = super().examples(drawn)
        text = {name: everything.pop(name) for name in ("text",) if name in everything}
        return [fields for fields in (everything, text) if fields]


class Query:
    """One query of a batch: ``arrays`` are those of all queries of its kind."""

    def __init__(self, kind: str, arrays: Arrays, place: int) -> None:
        self.kind, self.arrays, self.place = kind, arrays, place

    def own(self, tensor: TensorSpec, widths: Mapping[str, int]) -> NDArray[Any]:
        """Return the query's array (1, …), without the padding that longer neighbours gave it."""
        array = self.arrays[tensor.name][self.place : self.place + 1]
        for axis, dim in enumerate(tensor.dims):
            if dim in VARIABLE and dim not in widths:
                masks = {"text": "text_mask", "regions": "visual_mask"}
                length = int(self.arrays[masks[str(dim)]][self.place].sum())
                array = np.take(array, range(length), axis=axis)
        return array


class Index:
    """The items, read from where they lie as far as they are needed. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.ids: list[str] = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        arrays = {file.stem: _mapped(file) for file in sorted(folder.glob("*.npy"))}
        self.vectors = arrays.pop("embedding", None)
        self._offsets = arrays.pop("offsets", None)
        self._stored = arrays
        graph = folder / "neighbours.faiss"
        self._graph: Any = _read_graph(graph) if graph.is_file() else None

    def nearest(self, vector: NDArray[Any], count: int, among: Rows) -> tuple[Rows, Float64Array]:
        """Return items and cosines, best first, of all or, where ``among`` is not empty, of
        those."""
        assert self.vectors is not None
        unit = (vector / np.linalg.norm(vector)).astype(np.float32)
        if self._graph is not None and not len(among):
            items = self._neighbours(unit, count)
        else:
            items = among if len(among) else np.arange(len(self.ids))
        cosines = (self.vectors[items] if len(items) < len(self.ids) else self.vectors) @ unit
        order = best(finite(cosines), count)
        return items[order], cosines[order].astype(np.float64)

    def _neighbours(self, unit: NDArray[np.float32], count: int) -> Rows:
        import faiss

        search = faiss.SearchParametersHNSW(efSearch=max(4 * count, 128))
        _, items = self._graph.search(unit[None], count, params=search)
        return np.sort(items[0][items[0] >= 0])

    def inputs(
        self, items: Rows, tensors: Sequence[TensorSpec], widths: Mapping[str, int]
    ) -> Arrays:
        """Return those of ``tensors`` that are the items', padded by 0, with their masks."""
        arrays: Arrays = {}
        for tensor in tensors:
            if tensor.name in self._stored:
                rows = list(self._rows(tensor.name, items))
                variable = [dim for dim in tensor.dims if dim in VARIABLE]
                longest = max(len(row) for row in rows)
                width = widths.get(str(variable[0]), longest) if variable else longest
                arrays[tensor.name] = np.stack([_padded(row, width, 0) for row in rows])
                arrays[tensor.name] = arrays[tensor.name].astype(tensor.dtype)
                for dim, mask in (("text", "text_mask"), ("regions", "visual_mask")):
                    if dim in variable:
                        lengths = np.array([len(row) for row in rows])
                        arrays[mask] = (np.arange(width) < lengths[:, None]).astype(np.int64)
        return arrays

    def _rows(self, name: str, items: Rows) -> Iterator[NDArray[Any]]:
        assert self._offsets is not None
        for item in items:
            yield self._stored[name][self._offsets[item] : self._offsets[item + 1]]


def _mapped(file: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _read_graph(file: Path) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ManifestInvalid("an index of so many items needs faiss: install faiss-cpu") from error
    faiss.omp_set_num_threads(1)
    return faiss.read_index(str(file))


def _padded(row: NDArray[Any], length: int, fill: int = -1) -> NDArray[Any]:
    """(n, …) -> (length, …)"""
    widths = [(0, length - len(row))] + [(0, 0)] * (row.ndim - 1)
    return np.pad(row, widths, constant_values=fill)


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
