"""Shards of an encoded corpus -> the files of an index, as handlers/retrieve.py reads them."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.errors import DataError

EXACT_UP_TO = 50_000
"""Items that are compared with a query one by one, by numpy; more are found by faiss."""
LINKS, CONSTRUCTION = 32, 200
"""Neighbours that each item has in faiss' graph, and how many are looked at to find them."""
LOOK_S = 0.2
"""How long a signal may wait while neighbours are looked for."""
NO_INPUTS = ("rows", "embedding", "lengths", "refused_rows", "refused")


@dataclass(frozen=True)
class Stored:
    """``rows``: which items of the corpus are in the index. ``refused``: row -> why not."""

    rows: tuple[int, ...]
    refused: dict[int, str]
    dtypes: dict[str, str]
    """Of what the graph ``fusion`` takes of the items, as it is kept."""


def store(shards: Sequence[Path], ids: Sequence[str], folder: Path) -> Stored:
    """Write the index of all items into ``folder``. ``ids``: of the items, by row. DataError where
    not one of them could be encoded."""
    folder.mkdir(parents=True)
    rows = np.concatenate(list(_each(shards, "rows")))
    refused_rows = np.concatenate(list(_each(shards, "refused_rows")))
    reasons = np.concatenate(list(_each(shards, "refused")))
    refusals = dict(zip(refused_rows.tolist(), reasons.tolist(), strict=True))
    if not len(rows):
        raise DataError(f"no item could be encoded: {next(iter(refusals.values()), 'none came')}")
    names_of_rows = [ids[row] for row in rows]
    (folder / "ids.json").write_text(
        json.dumps(names_of_rows, ensure_ascii=False), encoding="utf-8"
    )
    names = sorted({name for file in shards for name in _names(file)})
    if "embedding" in names:
        vectors = _write(shards, "embedding", folder)
        if len(vectors) > EXACT_UP_TO:
            _write_graph(vectors, folder / "neighbours.faiss")
    if "lengths" in names:
        lengths = np.concatenate(list(_each(shards, "lengths")))
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    inputs = [name for name in names if name not in NO_INPUTS]
    dtypes = {name: str(_write(shards, name, folder).dtype) for name in inputs}
    return Stored(tuple(rows.tolist()), refusals, dtypes)


def _names(file: Path) -> list[str]:
    with np.load(file, allow_pickle=False) as shard:
        return list(shard.files)


def _each(shards: Sequence[Path], name: str) -> Iterator[NDArray[Any]]:
    for file in shards:
        with np.load(file, allow_pickle=False) as shard:
            if name in shard.files:
                yield shard[name]


def _write(shards: Sequence[Path], name: str, folder: Path) -> NDArray[Any]:
    """Return one array of all shards, on disk, since it may be larger than memory."""
    length = sum(len(array) for array in _each(shards, name))
    file: NDArray[Any] | None = None
    start = 0
    for array in _each(shards, name):
        if file is None:
            shape = (length, *array.shape[1:])
            file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, shape)
        file[start : start + len(array)] = array
        start += len(array)
    assert isinstance(file, np.memmap)
    file.flush()
    return file


def _write_graph(vectors: NDArray[Any], file: Path) -> None:
    """Write the graph of neighbours on one thread, so that the same vectors give the same bytes."""
    import faiss

    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = CONSTRUCTION

    def add() -> None:
        faiss.omp_set_num_threads(1)  # of the thread that calls it
        graph.add(np.ascontiguousarray(vectors))

    _run_aside(add)
    faiss.write_index(graph, str(file))


def _run_aside(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that ends with the process, so that a signal ends this within its
    minutes in compiled code. Raises what it raises."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)  # a join without a limit would hold back the signal
    if errors:
        raise errors[0]
