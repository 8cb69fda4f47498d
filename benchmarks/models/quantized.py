"""INT8 against fp32 in ONNX Runtime and against the eager network, in one process and one thread.

    .venv/bin/python -m benchmarks.models.quantized RECIPE CHECKPOINT FP32.mar INT8.mar \\
        --items ITEMS.jsonl

Prints the table of docs/quantization.md. Inputs are those that the archive's own preprocessing
makes of the items. Rounds go through all three in turn, so that a busy machine slows all of them;
times are the processor's of the one thread that computes, which on an idle machine is what the
clock shows. ``noise`` is half the range between the quartiles over the median.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vlserve.exporter.export import read_trained
from vlserve.exporter.parity import run_eager
from vlserve.quantize.graph_inputs import record
from vlserve.quantize.items import read_parts, requests_of
from vlserve.quantize.speed import first_of
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.backend import open_backend
from vlserve.runtime.types import Arrays
from vlserve.settings import load_settings

Run = Callable[[Arrays], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--graph", default="model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = read_trained(options.recipe, options.checkpoint, None, load_settings())
    plan = checkpoint.recipe.graphs(checkpoint.network, checkpoint.config)[options.graph]
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {
            "eager": lambda inputs: run_eager(
                plan, {name: torch.from_numpy(array) for name, array in inputs.items()}
            )
        }
        for kind, archive in (("fp32", options.fp32), ("int8", options.int8)):
            root = Path(folder) / kind
            manifest = unpack_archive(archive, root)
            runs[kind] = open_backend(manifest.graphs[options.graph], root, threads=1).run
        lines = read_parts(options.items).calibrated[: max(options.batches)]
        requests = [fields for line in lines for fields in requests_of(line, manifest)]
        (inputs, *_) = record(Path(folder) / "fp32", requests)[options.graph].batches
        print("| batch | inputs | | ms an item | noise | against eager | against fp32 |")
        print("|---|---|---|---|---|---|---|")
        for batch in options.batches:
            report(runs, first_of(inputs, batch), batch, options.rounds)


def report(runs: dict[str, Run], inputs: Arrays, batch: int, rounds: int) -> None:
    """One row a kind."""
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for round_ in range(rounds + 1):
        for kind, run in runs.items():
            start = time.thread_time()
            run(inputs)
            if round_:  # the first fills buffers
                times[kind].append((time.thread_time() - start) * 1000 / batch)
    medians = {kind: statistics.median(times_ms) for kind, times_ms in times.items()}
    shapes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in inputs.items())
    for kind, times_ms in times.items():
        low, _, high = statistics.quantiles(times_ms, n=4)
        print(
            f"| {batch} | {shapes} | {kind} | {medians[kind]:.1f} "
            f"| {(high - low) / 2 / medians[kind]:.0%} "
            f"| {medians['eager'] / medians[kind]:.2f}x | {medians['fp32'] / medians[kind]:.2f}x |"
        )


if __name__ == "__main__":
    main()
