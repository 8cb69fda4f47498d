"""Quantised graphs, made once each, with their speed and their distance from the fp32 graph."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlserve.quantize.graph_inputs import Feeds
from vlserve.quantize.methods import Method, Node, Prepared, prepare, quantise
from vlserve.quantize.speed import Clock, size_of
from vlserve.runtime.backend import open_backend
from vlserve.runtime.manifest import Graph
from vlserve.runtime.types import Arrays, Backend

FARTHEST = 0.5
"""A graph whose outputs are farther from the fp32 one's, in any batch size, is no candidate."""
GROUPS = 24
"""Nodes of one graph are tried alone in so many groups of neighbours at the most."""

Excluded = frozenset[str]


@dataclass(frozen=True)
class Variant:
    """``faster``: fp32's time over this one's. ``method`` None: the fp32 graph itself."""

    method: Method | None
    excluded: Excluded
    file: Path
    faster: float


@dataclass(frozen=True)
class Guilt:
    """What quantising these neighbouring nodes alone does to their graph's outputs."""

    graph: str
    nodes: tuple[Node, ...]
    error: float

    @property
    def names(self) -> Excluded:
        return frozenset(node.name for node in self.nodes)


class GraphVariants:
    """All of one graph, made in ``folder`` as they are asked for."""

    def __init__(self, name: str, graph: Graph, root: Path, feeds: Feeds, folder: Path) -> None:
        self.name, self.graph, self.feeds = name, graph, feeds
        self.source = root / graph.file
        self._folder = folder
        self._prepared: Prepared = prepare(self.source, folder, feeds.batches)
        self._fp32 = self._open(self.source)
        self.cost = 1.0
        """Of fp32, for all items that were recorded; known once candidates are timed."""
        self._made: dict[tuple[Method | None, Excluded], Variant] = {
            (None, frozenset()): Variant(None, frozenset(), self.source, 1.0)
        }

    @property
    def own(self) -> Variant:
        """The fp32 graph."""
        return self._made[None, frozenset()]

    def candidates(self, clock: Clock) -> list[Variant]:
        """Make a variant for each method that gives a graph that runs; they are timed together."""
        files = {method: self._write(method, frozenset()) for method in self._prepared.methods()}
        usable = {method: file for method, file in files.items() if self._runs(file)}
        fp32, *times = clock(self.graph, [self.source, *usable.values()], self.feeds)
        self.cost = fp32 * self.feeds.calls * size_of(self.feeds.batches[0])
        for (method, file), time in zip(usable.items(), times, strict=True):
            variant = Variant(method, frozenset(), file, fp32 / time)
            self._made[method, frozenset()] = variant
        return [self._made[method, frozenset()] for method in usable]

    def without(self, method: Method, exclusions: Excluded, clock: Clock) -> Variant | None:
        """Return the graph with these nodes left in float, timed against fp32; None where it does
        not run."""
        key = (method, exclusions)
        if key not in self._made:
            file = self._write(method, exclusions)
            if not self._runs(file):
                return None
            fp32, time = clock(self.graph, [self.source, file], self.feeds)
            self._made[key] = Variant(method, exclusions, file, fp32 / time)
        return self._made[key]

    def guilt(self, method: Method) -> list[Guilt]:
        """Measure the guilt of every node that ``method`` quantises, in groups of neighbours where
        there are many."""
        nodes = self._prepared.quantised_by(method)
        size = -(-len(nodes) // GROUPS)
        groups = [tuple(nodes[at : at + size]) for at in range(0, len(nodes), size)]
        inputs = self.feeds.batches[0]
        references = self._fp32.run(inputs)
        variants = []
        for group in groups:
            others = {node.name for node in self._prepared.nodes if node not in group}
            file = self._folder / "alone.onnx"
            quantise(self._prepared, method, file, others)
            outputs = self._open(file).run(inputs)
            variants.append(Guilt(self.name, group, distance(outputs, references)))
        return variants

    def _write(self, method: Method, exclusions: Excluded) -> Path:
        file = self._folder / f"{len(list(self._folder.glob('variant-*')))}.onnx"
        file = file.with_name(f"variant-{file.name}")
        quantise(self._prepared, method, file, exclusions)
        return file

    def _runs(self, file: Path) -> bool:
        """Return whether a graph runs in every batch size, near enough to fp32."""
        try:
            backend = self._open(file)
            for inputs in (*self.feeds.others, self.feeds.batches[0]):
                if not distance(backend.run(inputs), self._fp32.run(inputs)) <= FARTHEST:
                    return False
        except Exception:  # an engine's own
            return False
        return True

    def _open(self, file: Path) -> Backend:
        return open_backend(
            self.graph.model_copy(update={"file": file.name}), file.parent, threads=1
        )


def distance(actual: Arrays, expected: Arrays) -> float:
    """Return the largest relative difference over the outputs, |actual - expected| /
    |expected|; infinite where shapes differ, or what is finite in one is not in the other. Masked
    places may hold -inf in both."""
    worst = 0.0
    for name, reference in expected.items():
        ours = actual[name]
        if ours.shape != reference.shape:
            return float("inf")
        finite = np.isfinite(reference)
        if not np.array_equal(np.isfinite(ours), finite):
            return float("inf")
        apart = np.linalg.norm(ours[finite].astype(np.float64) - reference[finite])
        length = np.linalg.norm(reference[finite].astype(np.float64))
        worst = max(worst, float(apart / length) if length else float(apart))
    return worst


def guilt_table(guilty: Sequence[Guilt], count: int = 10) -> str:
    """Describe guilty nodes, the worst first, as lines of text."""
    rows = ["error alone  graph  nodes"]
    for guilt in guilty[:count]:
        names = ", ".join(f"{node.name} ({node.op})" for node in guilt.nodes[:3])
        more = f" and {len(guilt.nodes) - 3} more" if len(guilt.nodes) > 3 else ""
        rows.append(f"{guilt.error:11.4f}  {guilt.graph}  {names}{more}")
    return "\n".join(rows)


def excluded_in(guilty: Collection[Guilt]) -> Mapping[str, Excluded]:
    """Return the names left out, by graph."""
    graphs = {guilt.graph for guilt in guilty}
    return {
        graph: frozenset().union(*(guilt.names for guilt in guilty if guilt.graph == graph))
        for graph in graphs
    }
