"""Whether a graph answers like the trained network, on shapes that the export never saw.

The gate before every archive, after huggingface/optimum's per-model tolerances; unlike them it
lists every mismatch, not the first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vlserve.errors import ParityFailed
from vlserve.exporter.recipe import GraphPlan
from vlserve.runtime.manifest import Parity
from vlserve.runtime.types import Backend

Sizes = Mapping[str, int]
Case = tuple[Sizes, Mapping[str, torch.Tensor]]
"""Sizes of the dynamic axes, and inputs of those sizes."""

BATCHES = (1, 1, 2, 5, 8, 4)
FEW = (1, 1, 2, 1, 5, 1)
"""Where other axes tell five cases apart: half of the items, each of which costs the network and
the graph a pass."""
LEAST_CASES = 5
SHARES = (1.0, 0.0, 0.5, 0.2, 0.8, 0.4)
"""How far between 1 and its longest every other axis is, in the case of the same place."""


@dataclass(frozen=True)
class Mismatch:
    """One output of one case that is further from the network's than allowed."""

    sizes: Sizes
    output: str
    reason: str
    """The largest difference, or why there is none to give."""

    def __str__(self) -> str:
        where = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        return f"{self.output} at {where}: {self.reason}"


@dataclass(frozen=True)
class Measured:
    """All cases of one graph."""

    parity: Parity
    mismatches: tuple[Mismatch, ...]

    def assert_equal(self, graph: str) -> None:
        """Raise ParityFailed, listing every mismatch, unless there is none."""
        if self.mismatches:
            lines = "\n  ".join(str(mismatch) for mismatch in self.mismatches)
            raise ParityFailed(
                f"graph {graph} does not answer like the network: {len(self.mismatches)} "
                f"mismatches in {self.parity.cases} cases (rtol {self.parity.rtol}, "
                f"atol {self.parity.atol}); no archive was written\n  {lines}"
            )


def unseen_sizes(axes: Iterable[str], longest: Sizes, export_sizes: Sizes) -> list[dict[str, int]]:
    """Return at least five sizes of the axes, none the exported one: batches of 1 and more, every
    other axis from 1 to its ``longest`` (12 where that is unknown)."""
    names = list(axes)
    few = _cases(FEW, names, longest, export_sizes)
    return few if len(few) >= LEAST_CASES else _cases(BATCHES, names, longest, export_sizes)


def _cases(
    batches: Sequence[int], axes: Sequence[str], longest: Sizes, export_sizes: Sizes
) -> list[dict[str, int]]:
    cases: list[dict[str, int]] = []
    for batch, share in zip(batches, SHARES, strict=True):
        sizes = {
            axis: batch if axis == "batch" else round(1 + share * (longest.get(axis, 12) - 1))
            for axis in axes
        }
        if sizes not in cases and sizes != export_sizes:
            cases.append(sizes)
    return cases


def measure(
    plan: GraphPlan, backend: Backend, cases: Iterable[Case], rtol: float, atol: float
) -> Measured:
    """Run every case through the network, eager, and through the graph, both at once: each takes
    one core, and at full size minutes."""
    mismatches: list[Mismatch] = []
    largest, count = 0.0, 0
    with ThreadPoolExecutor(max_workers=1) as beside:
        for sizes, inputs in cases:
            count += 1
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            future = beside.submit(backend.run, arrays)
            references = run_eager(plan, inputs)
            try:
                outputs = future.result()
            except Exception as error:  # an engine's own; a baked-in size ends here
                lines = str(error).strip().splitlines() or [type(error).__name__]
                mismatches.append(Mismatch(sizes, "every output", f"the graph failed: {lines[-1]}"))
                continue
            for name, reference in references.items():
                difference, reason = compare(outputs[name], reference, rtol, atol)
                largest = max(largest, difference)
                if reason:
                    mismatches.append(Mismatch(sizes, name, reason))
    parity = Parity(cases=count, max_abs_diff=largest, rtol=rtol, atol=atol)
    return Measured(parity, tuple(mismatches))


def run_eager(
    plan: GraphPlan, inputs: Mapping[str, torch.Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Return the network's own outputs by name."""
    with torch.inference_mode():
        result = plan.module(*(inputs[tensor.name] for tensor in plan.inputs))
    values = (result,) if isinstance(result, torch.Tensor) else result
    return {tensor.name: value.numpy() for tensor, value in zip(plan.outputs, values, strict=True)}


def compare(
    actual: NDArray[np.float32], expected: NDArray[np.float32], rtol: float, atol: float
) -> tuple[float, str | None]:
    """Return the largest difference, and what is wrong unless ``actual`` is within
    ``atol + rtol * |expected|`` of ``expected`` everywhere."""
    if actual.shape != expected.shape:
        return 0.0, f"shape {actual.shape}, the network has {expected.shape}"
    if not np.isfinite(expected).all():
        return 0.0, "the network's own output is not finite"
    if not np.isfinite(actual).all():
        return 0.0, "not finite"
    difference = np.abs(actual.astype(np.float64) - expected)
    largest = float(difference.max(initial=0.0))
    over = difference > atol + rtol * np.abs(expected)
    if not over.any():
        return largest, None
    where = np.unravel_index(np.argmax(difference), difference.shape)
    at = tuple(int(index) for index in where)
    return largest, (
        f"largest difference {largest:.3g} at {at}, where the network has {expected[at]:.6g}; "
        f"{int(over.sum())} of {over.size} values are over"
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute sums in the same order whatever the number of cores, so that archives repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
