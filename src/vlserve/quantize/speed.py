"""How long graphs take on one thread, held against each other.

Runs of all graphs take turns, so that a busy machine slows all of them, and what counts is the
processor's time of this thread, on which ONNX Runtime computes.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from vlserve.quantize.graph_inputs import Feeds
from vlserve.runtime.backend import open_backend
from vlserve.runtime.manifest import Graph
from vlserve.runtime.types import Arrays

ROUNDS = 7
"""Turns at least."""
SECONDS = 3.0
"""Turns are taken until so much time has gone by for a batch size, but at most MOST_ROUNDS."""
MOST_ROUNDS = 60

Clock = Callable[[Graph, Sequence[Path], Feeds], list[float]]
"""Graph, its files to compare, its inputs -> milliseconds an item of each."""


def measure_ms(graph: Graph, files: Sequence[Path], feeds: Feeds) -> list[float]:
    """Return the mean of batch 1 and of a full batch, per item."""
    sessions = [
        open_backend(graph.model_copy(update={"file": file.name}), file.parent, threads=1)
        for file in files
    ]
    full = max(feeds.batches, key=size_of)
    sizes = [first_of(full, 1), full] if size_of(full) > 1 else [full]
    durations: list[list[float]] = [[] for _ in files]
    for inputs in sizes:
        runs: list[list[float]] = [[] for _ in files]
        for session in sessions:
            session.run(inputs)
        wall_start = time.monotonic()
        while len(runs[0]) < ROUNDS or (
            len(runs[0]) < MOST_ROUNDS and time.monotonic() - wall_start < SECONDS
        ):
            for session, times in zip(sessions, runs, strict=True):
                start = time.thread_time()
                session.run(inputs)
                times.append((time.thread_time() - start) * 1000 / size_of(inputs))
        for times, means in zip(runs, durations, strict=True):
            means.append(median(times))
    return [sum(means) / len(means) for means in durations]


def first_of(inputs: Arrays, items: int) -> Arrays:
    return {name: array[:items] for name, array in inputs.items()}


def size_of(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))
