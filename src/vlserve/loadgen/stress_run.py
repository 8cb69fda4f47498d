"""One load run: Locust as a subprocess, bounded in time, then its records judged."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from vlserve.errors import StressError
from vlserve.loadgen.dataset_requests import read_posts
from vlserve.loadgen.locust_process import last_words, load_file, running_locust
from vlserve.loadgen.request_record import read_record_file
from vlserve.loadgen.stage_plot import plot_stages
from vlserve.loadgen.stage_times import WhereTimeWent, where_time_went
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_summary import (
    ClientUse,
    Figures,
    breaches,
    late_p99_ms,
    split_warm_up,
    summarise,
)

START_UP_S = 60
"""Locust imports, reads the covers and writes its report in this time, also on a busy machine."""

Show = Callable[[str], None]


@dataclass(frozen=True)
class StressResult:
    """One judged run. result.json holds the same."""

    url: str
    model: str
    load: str
    duration_s: int
    max_error_rate: float
    max_p99_ms: float
    figures: Figures
    """What is judged: everything after the warm-up."""
    warm_up: Figures
    client: ClientUse
    client_saturated: bool
    breaches: tuple[str, ...]
    passed: bool
    stages: WhereTimeWent | None
    """Of what is judged; None where no answer tells. stages.png shows it."""
    report: Path
    """Locust's HTML report; it counts the warm-up in."""
    result: Path


def _options(plan: StressPlan, out_dir: Path) -> Mapping[str, object]:
    users = plan.users or 1
    options = {
        "--locustfile": load_file("locustfile.py"),
        "--host": plan.url,
        "--users": users,
        "--spawn-rate": users,
        "--run-time": f"{plan.warm_up_s + plan.duration_s}s",
        "--stop-timeout": plan.timeout_s + 5,
        "--exit-code-on-error": 0,
        "--html": out_dir / "report.html",
        "--model": plan.model,
        "--sticky-share": plan.sticky_share,
        "--request-timeout": plan.timeout_s,
        "--max-in-flight": plan.max_in_flight,
        "--record": out_dir / "requests.jsonl",
    }
    optional = {
        "--data": plan.data and plan.data.resolve(),
        "--archive": plan.archive and plan.archive.resolve(),
        "--rate": plan.rate_per_s,
        "--model-version": plan.version,
    }
    return options | {name: value for name, value in optional.items() if value is not None}


def _cpu_share(samples: Sequence[tuple[float, float]], plan: StressPlan) -> float:
    """CPU seconds a second while requests were judged; Locust's own start and report left out."""
    judged = [
        sample
        for sample in samples
        if plan.warm_up_s <= sample[0] <= plan.warm_up_s + plan.duration_s
    ]
    if len(judged) < 2:
        return 0.0
    (from_s, used_before_s), (to_s, used_s) = judged[0], judged[-1]
    return (used_s - used_before_s) / (to_s - from_s)


def _watch(process: subprocess.Popen[bytes], plan: StressPlan, out_dir: Path, show: Show) -> float:
    """Wait for the end; the mean share of a core that Locust used."""
    planned_s = plan.warm_up_s + plan.duration_s
    allowed_s = planned_s + plan.timeout_s + START_UP_S
    client = psutil.Process(process.pid)
    started = time.monotonic()
    samples: list[tuple[float, float]] = []
    while process.poll() is None:
        elapsed_s = time.monotonic() - started
        if elapsed_s > allowed_s:
            raise StressError(
                f"Locust did not end within {allowed_s} s; its log, {out_dir / 'locust.log'}, "
                f"ends with: {last_words(out_dir)}"
            )
        waiting = "waiting for the last answers" if elapsed_s > planned_s else "running"
        show(f"{plan.load}, {waiting}: {elapsed_s:.0f} of {planned_s} s")
        try:
            samples.append((elapsed_s, sum(client.cpu_times()[:2])))
            process.wait(timeout=1)
        except (subprocess.TimeoutExpired, psutil.NoSuchProcess):
            continue
    if process.returncode != 0:
        raise StressError(
            f"Locust ended with exit code {process.returncode}; its log, "
            f"{out_dir / 'locust.log'}, ends with: {last_words(out_dir)}"
        )
    return _cpu_share(samples, plan)


def _judge(plan: StressPlan, out_dir: Path, cpu_share: float) -> StressResult:
    records = read_record_file(out_dir / "requests.jsonl")
    before, judged = split_warm_up(records, plan.warm_up_s)
    figures = summarise(judged, plan.warm_up_s, plan.warm_up_s + plan.duration_s)
    client = ClientUse(1, round(cpu_share, 3), late_p99_ms(judged))
    broken = breaches(figures, plan)
    return StressResult(
        url=plan.url,
        model=plan.model,
        load=plan.load,
        duration_s=plan.duration_s,
        max_error_rate=plan.max_error_rate,
        max_p99_ms=plan.max_p99_ms,
        figures=figures,
        warm_up=summarise(before, 0.0, plan.warm_up_s),
        client=client,
        client_saturated=client.saturated,
        breaches=broken,
        passed=not broken,
        stages=where_time_went(judged),
        report=out_dir / "report.html",
        result=out_dir / "result.json",
    )


def run_stress(plan: StressPlan, out_dir: Path, show: Show = lambda message: None) -> StressResult:
    """Run the plan; ``out_dir`` gets report.html, result.json, stages.png, requests.jsonl and
    locust.log.

    DataError where the covers cannot be read, StressError where Locust itself fails or hangs; a
    server that answers wrong, late or not at all is a result. Whatever ends this call, Locust has
    ended before.
    """
    if plan.data is not None:
        read_posts(plan.data)
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    with running_locust(_options(plan, out_dir), out_dir, plan.api_key) as process:
        cpu_share = _watch(process, plan, out_dir, show)
    result = _judge(plan, out_dir, cpu_share)
    if result.stages is not None:
        plot_stages(out_dir / "stages.png", result.stages, f"{plan.model}, {plan.load}")
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result
