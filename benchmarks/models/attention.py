"""What joint attention costs with all keys, with means of chunks, with one key a chunk.

    nice -n 5 .venv/bin/python -m benchmarks.models.attention

Prints the first table of docs/attention.md. One attention of VisualBERT's size over text and
visual tokens: projections, scores, softmax, output, LayerNorm; no MLP. It is eager, as the networks
run it; ``fused`` is the same by torch's scaled_dot_product_attention, which never holds all scores.

Peak memory: each figure comes from a process of its own on one thread, which runs the attention
once on a few tokens, resets the kernel's high-water mark of its resident memory
(/proc/self/clear_refs), runs the attention once, and takes the mark less what was resident before.
Time: the processor's time of the runs that follow it, the median; on one thread that is what an
idle machine's clock shows. Rounds go through all kinds in turn, so that a busy machine slows all of
them; the medians over rounds are compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.models.attention import merge_heads, split_heads
from vlserve.models.bert import Attention, LayersConfig
from vlserve.models.coattention import JointEncoder, KeysConfig

SIZES = LayersConfig(hidden=768, layers=1, heads=12, intermediate=3072)
TEXT, FEW = 20, 8
"""Text tokens, and visual tokens of the run that comes before the measured one."""
VISUAL = (525, 2100)
KINDS = ("full", "chunk 4", "chunk 8", "sparse 4", "sparse 8", "full fused", "chunk 4 fused")
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Of one attention. ``peak_mib`` above what was resident before it."""

    kind: str
    visual: int
    peak_mib: float
    time_ms: float


class Fused(JointEncoder):
    """The same attention by torch's fused kernel."""

    def attend(
        self, attention: Attention, x: Tensor, text_mask: Tensor, visual_mask: Tensor
    ) -> Tensor:
        keys, bias = self.reduce(x, text_mask, visual_mask)
        query = split_heads(attention.self.query(x), attention.heads)
        key, value = attention.keys_values(keys)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended: Tensor = attention.output(merge_heads(context), x)
        return attended


def encoder(kind: str) -> JointEncoder:
    """Of a kind, like ``chunk 4 fused``."""
    torch.manual_seed(0)
    variant, _, chunk = kind.removesuffix(" fused").partition(" ")
    keys = KeysConfig.model_validate({"variant": variant, "chunk": chunk or 1})
    return (Fused if kind.endswith(" fused") else JointEncoder)(SIZES, keys)


def measure(kind: str, visual: int, runs: int) -> Cost:
    """In this process, which must be a fresh one."""
    torch.set_num_threads(1)
    network = encoder(kind).eval().requires_grad_(False)
    attention = network.layers[0].attention

    def inputs(regions: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(1, TEXT + regions, SIZES.hidden)
        return x, torch.ones(1, TEXT).long(), torch.ones(1, regions).long()

    with torch.inference_mode():
        network.attend(attention, *inputs(FEW))
        tensors = inputs(visual)
        before = reset_peak()
        network.attend(attention, *tensors)
        peak = resident("VmHWM") - before
        times = []
        for _ in range(runs):
            start = time.process_time()
            network.attend(attention, *tensors)
            times.append(time.process_time() - start)
    return Cost(kind, visual, peak / MIB, 1000 * statistics.median(times))


def reset_peak() -> int:
    """The resident bytes, from which the high-water mark now starts."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure_in_fresh_process(kind: str, visual: int, runs: int) -> Cost:
    arguments = ["--measure", kind, "--visual", str(visual), "--runs", str(runs)]
    process = subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return Cost(**json.loads(process.stdout))


def table(costs: Sequence[Cost]) -> list[str]:
    """Markdown: medians over the rounds, and how many times less than full."""
    lines = ["| visual tokens | attention | peak memory | less | time | faster |"]
    lines.append("|" + "---|" * 6)
    for visual in VISUAL:
        medians = {kind: _median(costs, kind, visual) for kind in KINDS}
        full = medians["full"]
        for kind, cost in medians.items():
            less, faster = full.peak_mib / cost.peak_mib, full.time_ms / cost.time_ms
            lines.append(
                f"| {visual} | {kind} | {cost.peak_mib:.0f} MiB | {less:.1f}x "
                f"| {cost.time_ms:.0f} ms | {faster:.1f}x |"
            )
    return lines


def _median(costs: Sequence[Cost], kind: str, visual: int) -> Cost:
    rounds = [cost for cost in costs if (cost.kind, cost.visual) == (kind, visual)]
    memory = statistics.median(cost.peak_mib for cost in rounds)
    return Cost(kind, visual, memory, statistics.median(cost.time_ms for cost in rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each process")
    parser.add_argument("--measure", choices=KINDS, help="one figure, in this process, as JSON")
    parser.add_argument("--visual", type=int, default=VISUAL[-1], help="visual tokens of --measure")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(asdict(measure(options.measure, options.visual, options.runs))))
        return 0
    costs = [
        measure_in_fresh_process(kind, visual, options.runs)
        for _ in range(options.rounds)
        for visual in VISUAL
        for kind in KINDS
    ]
    print("\n".join(table(costs)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
