"""One stress run: Locust, bounded in time, then the judgement of its records."""

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from vlserve.loadgen.dataset_requests import read_dataset
from vlserve.loadgen.locust_process import START_UP_S, LocustProcess, running_locust
from vlserve.loadgen.report_page import add_section, verdict_section
from vlserve.loadgen.request_record import RequestRecord
from vlserve.loadgen.stage_plot import plot_stages
from vlserve.loadgen.stage_times import WhereTimeWent, where_time_went
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_summary import (
    ClientUse,
    LoadSummary,
    breaches,
    late_p99_ms,
    split_warm_up,
    summarise,
)

Show = Callable[[str], None]

CLIENT_IS_LATE = (
    "the load generator was late itself: with cores of its own, the server may hold more"
)

PROCESSES_START_S = 5
"""Locust's processes begin to send in this time."""

CpuSample = tuple[float, Mapping[int, float]]
"""Seconds of the run, and by process the CPU seconds that it has used."""


@dataclass(frozen=True)
class StressResult:
    """One judged run. result.json holds the same, under these names."""

    url: str
    model: str
    load: str
    duration_s: int
    max_error_rate: float
    max_p99_ms: float
    figures: LoadSummary
    """The requests that are judged: all those due after the warm-up."""
    warm_up: LoadSummary
    client: ClientUse
    client_saturated: bool
    breaches: tuple[str, ...]
    passed: bool
    verdict: str
    """Whether the limits held, and whether the client was too slow, in one sentence."""
    stages: WhereTimeWent | None
    """Of the judged answers; None: no answer has timings. stages.png shows it."""
    report: Path
    """Locust's HTML report; it counts the warm-up in."""
    result: Path


def _options(plan: StressPlan) -> dict[str, object]:
    users = plan.users or plan.processes
    return {
        **_processes(plan.processes),
        "--users": users,
        "--spawn-rate": users,
        "--run-time": f"{_run_time_s(plan)}s",
        "--rate": plan.rate_per_s,
        "--max-in-flight": plan.max_in_flight,
        "--sticky-share": plan.sticky_share,
        "--model-version": plan.version,
    }


def _processes(count: int) -> dict[str, object]:
    """Return the options that have Locust send from several processes, which talk to it over
    loopback."""
    if count == 1:
        return {}
    port = _free_port()
    bound = {"--master-bind-host": "127.0.0.1", "--master-bind-port": port}
    return {"--processes": count, **bound, "--master-port": port}


def _run_time_s(plan: StressPlan) -> int:
    """Return how long Locust runs: it counts from its own start, its other processes begin later,
    and what they send beyond the plan's time is not judged."""
    later_s = PROCESSES_START_S if plan.processes > 1 else 0
    return plan.warm_up_s + plan.duration_s + later_s


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_shares(samples: Sequence[CpuSample], plan: StressPlan) -> Mapping[int, float]:
    """Return, by process, CPU seconds per second of the judged time, without Locust's start and
    report."""
    samples = [
        sample
        for sample in samples
        if plan.warm_up_s <= sample[0] <= plan.warm_up_s + plan.duration_s
    ]
    if len(samples) < 2:
        return {}
    (from_s, used_before_s), (to_s, used_s) = samples[0], samples[-1]
    return {
        pid: (used_s[pid] - used_before_s[pid]) / (to_s - from_s)
        for pid in used_s.keys() & used_before_s.keys()
    }


def _watch(locust: LocustProcess, plan: StressPlan, show: Show) -> float:
    """Wait for Locust's end; return the mean share of a core that its busiest process used."""
    planned_s = _run_time_s(plan)
    allowed_s = planned_s + plan.timeout_s + START_UP_S
    client = psutil.Process(locust.pid)
    start = time.monotonic()
    samples: list[CpuSample] = []
    while not locust.ended():
        elapsed_s = time.monotonic() - start
        if elapsed_s > allowed_s:
            raise locust.error(f"Locust did not end within {allowed_s} s")
        phase = "waiting for the last answers" if elapsed_s > planned_s else "running"
        show(f"{plan.load}, {phase}: {elapsed_s:.0f} of {planned_s} s")
        with suppress(psutil.NoSuchProcess):
            processes = [client, *client.children()]
            cpu_s = {each.pid: sum(each.cpu_times()[:2]) for each in processes}
            samples.append((elapsed_s, cpu_s))
        locust.wait(1)
    return max(_cpu_shares(samples, plan).values(), default=0.0)


def _judge(
    plan: StressPlan, records: Sequence[RequestRecord], out_dir: Path, cpu_share: float
) -> StressResult:
    ends_s = plan.warm_up_s + plan.duration_s
    if plan.processes > 1:
        records = [record for record in records if record.due_s < ends_s]
    warm_up_records, records = split_warm_up(records, plan.warm_up_s)
    figures = summarise(records, plan.warm_up_s, ends_s)
    client = ClientUse(plan.processes, round(cpu_share, 3), late_p99_ms(records))
    faults = breaches(figures, plan)
    return StressResult(
        url=plan.url,
        model=plan.model,
        load=plan.load,
        duration_s=plan.duration_s,
        max_error_rate=plan.max_error_rate,
        max_p99_ms=plan.max_p99_ms,
        figures=figures,
        warm_up=summarise(warm_up_records, 0.0, plan.warm_up_s),
        client=client,
        client_saturated=client.saturated,
        breaches=faults,
        passed=not faults,
        verdict=_verdict(plan, faults, client.saturated),
        stages=where_time_went(records),
        report=out_dir / "report.html",
        result=out_dir / "result.json",
    )


def _verdict(plan: StressPlan, faults: Sequence[str], client_saturated: bool) -> str:
    limits = f"error rate up to {plan.max_error_rate:g}, p99 up to {plan.max_p99_ms:g} ms"
    word = f"broke: {'; '.join(faults)}" if faults else f"held ({limits})"
    doubt = f"; {CLIENT_IS_LATE}" if client_saturated else ""
    return f"{plan.load} {word}{doubt}"


def run_stress(plan: StressPlan, out_dir: Path, show: Show = lambda message: None) -> StressResult:
    """Run the plan and return what came of it.

    ``out_dir`` gets report.html, result.json, stages.png, requests.jsonl and locust.log. A server
    that answers wrong, late or not at all is a result; DataError where the dataset cannot be read,
    StressError where Locust itself fails or hangs. Locust has ended when this call ends.
    """
    if plan.data is not None:
        read_dataset(plan.data)
    out_dir = out_dir.resolve()
    with running_locust("locustfile.py", plan, _options(plan), out_dir) as locust:
        cpu_share = _watch(locust, plan, show)
        records = locust.records()
    result = _judge(plan, records, out_dir, cpu_share)
    add_section(result.report, verdict_section(result.passed, result.verdict))
    if result.stages is not None:
        plot_stages(out_dir / "stages.png", result.stages, f"{plan.model}, {plan.load}")
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result
