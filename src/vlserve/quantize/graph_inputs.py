"""What an archive's graphs are given when it answers: the arrays to calibrate and to time on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlserve.batch.offline import PATH_SUFFIX
from vlserve.errors import DataError, ExportError
from vlserve.exporter.pack import has_our_runtime
from vlserve.runtime.archive import check_folder
from vlserve.runtime.backend import open_backend
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import load_task
from vlserve.runtime.types import Arrays, Backend, ItemError, Request

BATCH = 8
OTHER_BATCHES = (1, 2, 5)
"""Sizes that calibration does not see; texts and regions of few items are padded otherwise too."""
MOST_FEEDS = 16
"""Kept of one graph: a decoder's runs many times for each batch."""


@dataclass
class Calls:
    """Inputs of one graph, thinned evenly as they come."""

    kept: list[Arrays] = field(default_factory=list)
    count: int = 0
    every: int = 1

    def add(self, inputs: Arrays) -> None:
        if self.count % self.every == 0:
            self.kept.append(dict(inputs))
        self.count += 1
        if len(self.kept) == 2 * MOST_FEEDS:
            self.kept, self.every = self.kept[::2], 2 * self.every


@dataclass(frozen=True)
class Feeds:
    """Of one graph. ``calls``: how often it ran for the calibrating items."""

    batches: tuple[Arrays, ...]
    others: tuple[Arrays, ...]
    """Of other batch sizes, for the check that no shape is baked in."""
    calls: int


class _Recording:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls = Calls()

    def run(self, inputs: Arrays) -> Arrays:
        self.calls.add(inputs)
        return self._backend.run(inputs)


def record(folder: Path, requests: Sequence[Mapping[str, Any]]) -> dict[str, Feeds]:
    """Answer ``requests`` by the unpacked archive in ``folder``, through its own preprocessing, and
    keep what each graph was given. DataError where it answers none of them, or a graph never ran;
    ExportError where its frozen runtime is not ours, in which the requests are answered here."""
    if not has_our_runtime(check_folder(folder)):
        raise ExportError(
            "the archive's frozen runtime is of another vlserve: export its checkpoint anew"
        )
    batches = _recorded(folder, requests, [BATCH])
    others = _recorded(folder, requests[: sum(OTHER_BATCHES)], OTHER_BATCHES)
    idle = [name for name, calls in batches.items() if not calls.kept]
    if idle:
        raise DataError(f"no item of the calibration file makes graph {', '.join(idle)} run")
    return {
        name: Feeds(tuple(calls.kept), tuple(others[name].kept), calls.count)
        for name, calls in batches.items()
    }


def _recorded(
    folder: Path, requests: Sequence[Mapping[str, Any]], sizes: Sequence[int]
) -> dict[str, Calls]:
    manifest = check_folder(folder)
    backends = {
        name: _Recording(open_backend(graph, folder, threads=1))
        for name, graph in manifest.graphs.items()
    }
    task = load_task(folder / "handlers" / f"{manifest.task}.py")
    pipeline = Pipeline(manifest, task(manifest, folder, backends))
    start, batch, reasons = 0, 0, []
    while start < len(requests):
        size = sizes[batch % len(sizes)]
        items = [Request(_read(fields)) for fields in requests[start : start + size]]
        answers = pipeline.run(items).answers
        reasons += [answer.message for answer in answers if isinstance(answer, ItemError)]
        start, batch = start + size, batch + 1
    if len(reasons) == len(requests):
        raise DataError(f"the archive answers no item of the calibration file: {reasons[0]}")
    return {name: backend.calls for name, backend in backends.items()}


def _read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read the files of a request. A field that cannot be read is left out: the task then refuses
    the item by name."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if not name.endswith(PATH_SUFFIX):
            values[name] = value
        elif Path(value).is_file():
            values[name.removesuffix(PATH_SUFFIX)] = Path(value).read_bytes()
    return values
