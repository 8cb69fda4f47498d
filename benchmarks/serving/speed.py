"""Served speed side by side, as ratios to the in-process limit.

    .venv/bin/python -m benchmarks.serving.speed
    .venv/bin/python -m benchmarks.serving.speed --peers all

One run on one machine: the archive's own code in process, our stacks on TorchServe (through the
gateway and without it) and on Triton, stock TorchServe, and the peers asked for, each from an
environment of its own under .vlserve/bench. All get the same photos from the same clients, in
rounds that go through all of them; who waits for his turn is stopped, so that he takes no CPU.
Prints the ratios, and writes the table, every cell as CSV, and a plot.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.archives import default_archives, default_checkpoint
from benchmarks.lib.closed_loop import Job, LoadProcess
from benchmarks.lib.in_process import InProcess, in_process
from benchmarks.lib.photos import Photo, drawn_for
from benchmarks.lib.published import FIGURES, machine, publish
from benchmarks.lib.ratios import (
    Cell,
    Limit,
    as_csv,
    costs,
    cpu_ratios,
    details,
    markdown,
    plot,
    rows,
    spread,
    times,
)
from benchmarks.lib.sides import OurStack, Side, SideFailed, first_answer, our_name, ours
from benchmarks.peers.servers import PEERS, peer_server
from benchmarks.peers.torchserve.start import stock_torchserve
from vlserve.cli.output import print_line
from vlserve.errors import StackError
from vlserve.processor import usable_cores
from vlserve.runtime.archive import unpack_archive, verify_archive

STOCK, STOCK_NAME = "stock", "stock TorchServe"
BARE_TRITON = "triton"
"""Of PEERS."""
LIMIT_BATCH = 8
ON_TORCHSERVE = OurStack("on TorchServe")
ON_TRITON = OurStack("on Triton", "triton")
LONE_ON_TRITON = OurStack("on Triton, lone requests on all cores", "triton", usable_cores())
OURS = {"torchserve": ON_TORCHSERVE, "triton": ON_TRITON, "triton-lone": LONE_ON_TRITON}


@dataclass(frozen=True)
class Plan:
    """How long each cell is measured, and how often."""

    connections: Sequence[int]
    rounds: int
    seconds: float
    warm_up_s: float


@dataclass(frozen=True)
class Contender:
    """A side, and the precision of the limit that it is held against."""

    side: Side
    precision: str


def measure(
    plan: Plan,
    limits: Mapping[str, InProcess],
    contenders: Sequence[Contender],
    load: LoadProcess,
) -> tuple[list[Limit], list[Cell]]:
    """Every cell of every round. Each second round goes backwards, so that nobody always follows
    the same one."""
    limit_rates: list[Limit] = []
    cells: list[Cell] = []
    for number in range(1, plan.rounds + 1):
        for precision, limit in limits.items():
            limit_rates.append(_limit(number, precision, limit, plan))
        in_turn = contenders if number % 2 else contenders[::-1]
        for connections in plan.connections:
            for contender in in_turn:
                cells.append(_cell(number, contender, connections, plan, load))
    return limit_rates, cells


def _limit(number: int, precision: str, limit: InProcess, plan: Plan) -> Limit:
    per_s = limit.items_per_s(LIMIT_BATCH, plan.seconds)
    alone_p50_ms = limit.alone_p50_ms(plan.seconds / 2)
    print_line(
        f"round {number}: in process {precision}: {per_s:.1f}/s; alone, p50 {alone_p50_ms:.1f} ms"
    )
    return Limit(number, precision, per_s, alone_p50_ms)


def _cell(
    number: int, contender: Contender, connections: int, plan: Plan, load: LoadProcess
) -> Cell:
    side = contender.side
    job = Job([side.url], side.body, side.headers, connections, plan.seconds, plan.warm_up_s)
    readings: list[Mapping[str, float]] = []

    def look() -> None:
        readings.append(side.cpu_s())

    side.wake()
    result = load.do(job, on_begin=look, on_end=look)
    side.rest()
    before, after = readings
    cell = Cell(
        number,
        side.name,
        contender.precision,
        connections,
        result.per_s,
        result.p50_ms,
        result.p99_ms,
        result.failures,
        result.client_cpus,
        {name: (after[name] - before.get(name, 0.0)) / result.seconds for name in after},
    )
    print_line(_cell_line(cell))
    return cell


def _cell_line(cell: Cell) -> str:
    cpus = {"client": cell.client_cpus, **cell.server_cpus}
    shares = ", ".join(f"{name} {share:.2f}" for name, share in cpus.items())
    failures = ", ".join(f"{count} x {why}" for why, count in cell.failures.items())
    return (
        f"round {cell.round}: {cell.side}, {cell.connections} connections: {cell.per_s:.1f}/s, "
        f"p50 {cell.p50_ms:.1f} ms, p99 {cell.p99_ms:.0f} ms; CPUs: {shares}"
        + (f"; FAILED: {failures}" if failures else "")
    )


@dataclass(frozen=True)
class Started:
    """Everything that is up, resting. ``absent``: who did not start -> why."""

    limits: Mapping[str, InProcess]
    contenders: Sequence[Contender]
    absent: Mapping[str, str]


def start(
    resources: ExitStack,
    folder: Path,
    archives: Sequence[Path],
    stacks: Sequence[str],
    others: Sequence[str],
    photo: Photo,
) -> Started:
    """Start everything, and let it rest.

    Args:
        resources: Ends what is started.
        folder: Where all keep their files.
        archives: The last one is what ``others`` serve.
        stacks: Names of OURS.
        others: STOCK, and names of PEERS.
        photo: What each is asked once.
    """
    limits: dict[str, InProcess] = {}
    contenders: list[Contender] = []
    absent: dict[str, str] = {}
    for number, archive in enumerate(archives):
        root = folder / f"archive-{number}"
        precision = unpack_archive(archive, root).precision
        limits[precision] = resources.enter_context(in_process(root, usable_cores()))
    for name in stacks:
        print_line(f"starting ours: {name}")
        try:
            sides = resources.enter_context(ours(folder / f"ours-{name}", archives, OURS[name]))
        except StackError as error:
            absent[f"ours {OURS[name].name}"] = str(error)
            print_line(f"{name} is left out: {error}")
            continue
        for side_precision, side in sides:
            first_answer(side, photo)
            contenders.append(Contender(side, side_precision))
        contenders[-1].side.rest()
    for name in others:
        print_line(f"starting {name}")
        peer_folder = folder / name
        peer_folder.mkdir()
        try:
            if name == STOCK:
                server = stock_torchserve(peer_folder, default_checkpoint(), photo)
                contender = Contender(resources.enter_context(server), "fp32")
            else:
                server = peer_server(PEERS[name], peer_folder, root, photo)
                contender = Contender(resources.enter_context(server), precision)
        except SideFailed as error:
            absent[name] = str(error)
            print_line(f"{name} is left out: {error}")
        else:
            contenders.append(contender)
            contender.side.rest()
    return Started(limits, contenders, absent)


def report(
    limits: Sequence[Limit], cells: Sequence[Cell], absent: Mapping[str, str], plan: Plan
) -> str:
    """The page's part, in Markdown."""
    table = rows(cells, limits)
    lines = [machine(), "", *_limit_lines(limits), "", markdown(table), ""]
    lines += [f"- {name} is missing: {why}" for name, why in absent.items()]
    lines += [
        f"Median of {plan.rounds} rounds of {plan.seconds:g} s (lowest–highest); a ratio is of the "
        "same round's limit of the same precision.",
        "",
    ]
    for precision in dict.fromkeys(limit.precision for limit in limits):
        on_torchserve = our_name(ON_TORCHSERVE, precision)
        on_triton = our_name(ON_TRITON, precision)
        for cost in costs(cells, on_torchserve, f"{on_torchserve}, no gateway"):
            lines.append(
                f"- The gateway at {cost.connections} connections, {precision}: "
                f"{cost.throughput.text(3)} of the throughput, {cost.p50_ms.text()} ms at the "
                "median."
            )
        for connections, ratio in times(cells, on_torchserve, STOCK_NAME):
            lines.append(
                f"- On TorchServe, {precision}, at {connections} connections: {ratio.text(1)} "
                "times stock TorchServe."
            )
        for connections, ratio in cpu_ratios(cells, on_triton, on_torchserve):
            lines.append(
                f"- CPU for an answer on Triton, {precision}, at {connections} connections: "
                f"{ratio.text(2)} of that on TorchServe."
            )
    for connections, ratio in times(cells, our_name(ON_TRITON, limits[-1].precision), BARE_TRITON):
        lines.append(
            f"- On Triton, {limits[-1].precision}, at {connections} connections: "
            f"{ratio.text(2)} times bare Triton."
        )
    for stack in (ON_TORCHSERVE, ON_TRITON):
        for connections, ratio in cpu_ratios(
            cells, our_name(stack, limits[-1].precision), BARE_TRITON
        ):
            lines.append(
                f"- CPU for an answer {stack.name}, {limits[-1].precision}, at {connections} "
                f"connections: {ratio.text(2)} of bare Triton's."
            )
    for row in (row for row in table if row.failures):
        whys = ", ".join(f"{count} x {why}" for why, count in row.failures.items())
        lines.append(f"- Failed: {row.side} at {row.connections} connections: {whys}.")
    return "\n".join([*lines, "", details(table), ""])


def _limit_lines(limits: Sequence[Limit]) -> list[str]:
    lines = []
    for precision in dict.fromkeys(limit.precision for limit in limits):
        own_limits = [limit for limit in limits if limit.precision == precision]
        per_s = spread([limit.per_s for limit in own_limits]).text(1)
        alone = spread([limit.alone_p50_ms for limit in own_limits]).text(1)
        lines.append(f"- In process, {precision}: {per_s} items a second; one alone: {alone} ms.")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--archive",
        type=Path,
        action="append",
        help="may be given for each precision; what peers serve comes last "
        "(default: a ResNet18-GRU tagger with random weights, fp32 and int8)",
    )
    parser.add_argument(
        "--stacks",
        default="torchserve,triton",
        help=f"of ours, some of {','.join(OURS)} (default: torchserve,triton)",
    )
    parser.add_argument("--peers", default="", help=f"all, or some of {','.join(PEERS)}")
    parser.add_argument("--stock", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--connections", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each cell")
    parser.add_argument("--warm-up", type=float, default=1.5, help="seconds, before each cell")
    parser.add_argument(
        "--out", type=Path, help="folder for table, CSV and plot (default: docs/benchmarks)"
    )
    options = parser.parse_args()
    names = list(PEERS) if options.peers == "all" else options.peers.split(",")
    options.peers = [name for name in names if name]
    options.stacks = options.stacks.split(",")
    if unknown := sorted(set(options.stacks) - set(OURS)):
        parser.error(f"no stack {', '.join(unknown)}: there are {', '.join(OURS)}")
    if unknown := sorted(set(options.peers) - set(PEERS)):
        parser.error(f"no peer {', '.join(unknown)}: there are {', '.join(PEERS)}")
    return options


def main() -> int:
    options = _options()
    plan = Plan(
        [int(count) for count in options.connections.split(",")],
        options.rounds,
        options.seconds,
        options.warm_up,
    )
    archives = options.archive or default_archives()
    photos = drawn_for(verify_archive(archives[-1]))
    # stock TorchServe serves the default checkpoint, which other archives are not made of
    others = [STOCK] * (options.stock and not options.archive) + options.peers
    with tempfile.TemporaryDirectory(prefix="vlserve-bench-") as scratch, ExitStack() as resources:
        load = LoadProcess(photos)
        resources.callback(load.close)
        servers = start(resources, Path(scratch), archives, options.stacks, others, photos[0])
        limits, cells = measure(plan, servers.limits, servers.contenders, load)
    text = report(limits, cells, servers.absent, plan)
    print_line(text)
    out = options.out or FIGURES
    out.mkdir(parents=True, exist_ok=True)
    (out / "serving.csv").write_text(as_csv(cells, limits), encoding="utf-8")
    plot(rows(cells, limits), out / "serving.png")
    if options.out is None:
        publish("serving", text + "\n![Ratios](benchmarks/serving.png)")
    else:
        (out / "serving.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
