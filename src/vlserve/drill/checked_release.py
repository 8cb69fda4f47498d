"""Release a version of a real model under load, roll it back, and judge both by the answers.

Afterwards the model is as it was before.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlserve.control.client import ControlClient
from vlserve.control.domain import RolloutStatus, State
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.drill.capacity import measure_pace
from vlserve.drill.release_result import CheckedRelease
from vlserve.drill.release_watch import Followed, Show, follow, reason
from vlserve.drill.report import render_section
from vlserve.errors import NotReady, StressError, VlserveError
from vlserve.exporter.pack import archive_name
from vlserve.loadgen.locust_process import LocustProcess
from vlserve.loadgen.release_checks import (
    Limits,
    WatchedRelease,
    check_release,
    rollback_ms,
    step_splits,
    version_summaries,
)
from vlserve.loadgen.release_traffic import ReleaseTraffic, running_traffic
from vlserve.loadgen.report_page import add_section
from vlserve.settings import Settings

WEIGHTS = (10, 30, 60, 100)
FASTEST_PER_S = 40.0
STICKY_SHARE, VERSION_SHARE = 0.5, 0.1
REQUESTS_PER_KEY = 3
"""How often a sticky key comes in each step, on average."""
AFTER_S = 3.0
"""Time for which the traffic goes on after promotion, and again after the rollback."""
_PATIENCE = 6
"""A release may take so many times what its holds add up to, and two minutes more."""


def stored_archive(settings: Settings, model: str, version: int) -> Path:
    """Return the archive in the model store of this stack; StressError if it is not there."""
    archive = settings.model_store / model / str(version) / archive_name(model, version)
    if not archive.is_file():
        raise StressError(
            f"{archive} is not there: run this command where the stack's model store is"
        )
    return archive


def candidate_of(control: ControlClient, model: str) -> int:
    """Return the newest version that is ready and not stable. NotReady if there is none."""
    view = control.model(model)
    ready = [v.version for v in view.versions if v.state is State.READY]
    if view.stable is None or not ready:
        raise NotReady(
            f"{model} needs a stable version and another that is ready: `vlserve register` one"
        )
    return max(ready)


def run_checked_release(
    settings: Settings,
    control: ControlClient,
    model: str,
    version: int | None,
    *,
    duration_s: float,
    rate_per_s: float | None,
    data: Path | None,
    limits: Limits,
    folder: Path,
    show: Show,
) -> CheckedRelease:
    """Release a version in four steps, roll it back, and judge.

    Errors of the control service and of Locust are raised: then nothing was judged.

    Args:
        settings: Of the stack that is up.
        control: Its control service.
        model: Name of the model.
        version: The candidate; None: the newest version that is ready.
        duration_s: Time of the four steps together.
        rate_per_s: Requests per second; None: what an idle model allows, measured first.
        data: Dataset of the requests; None: the probes of the stable version's archive.
        limits: What each version must hold.
        folder: Gets report.html, result.json, requests.jsonl and locust.log.
        show: Gets messages about the progress.
    """
    candidate = version or candidate_of(control, model)
    stable = control.model(model).stable
    if stable is None:
        raise NotReady(f"{model} has no stable version to go back to")
    archive = stored_archive(settings, model, stable)
    show("measuring how fast it answers")
    rate = rate_per_s or measure_pace(settings, model, archive, FASTEST_PER_S).rate_per_s
    hold_s = duration_s / len(WEIGHTS)
    traffic = ReleaseTraffic(
        url=settings.gateway_url,
        model=model,
        archive=archive,
        rate_per_s=rate,
        data=data,
        sticky_share=STICKY_SHARE,
        sticky_keys=max(20, int(rate * STICKY_SHARE * hold_s / REQUESTS_PER_KEY)),
        versions=(stable, candidate),
        version_share=VERSION_SHARE,
        api_key=next(iter(settings.gateway.api_keys), ""),
    )
    show(f"{rate:g} requests/s")
    with running_traffic(traffic, folder) as locust:
        rollout = control.start_rollout(model, candidate, policy_changes(hold_s))
        release = _watch(control, rollout, locust, duration_s, show)
        time.sleep(AFTER_S)
        requests = locust.finish()
    checks = check_release(requests, release, limits)
    breaches = [f"{check.name} ({check.said})" for check in checks if not check.passed]
    result = CheckedRelease(
        model=model,
        candidate=candidate,
        stable=stable,
        rate_per_s=rate,
        passed=not breaches,
        verdict=f"broke: {'; '.join(breaches)}" if breaches else "every check held",
        checks=checks,
        steps=step_splits(requests, release),
        versions=version_summaries(requests, release),
        rollback_ms=rollback_ms(requests, release),
        report=locust.report,
        result=folder.resolve() / "result.json",
    )
    add_section(locust.report, render_section(result))
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result


def policy_changes(hold_s: float) -> Mapping[str, Any]:
    """Return the changes to rollout.yaml for this release: all steps in a short time.

    Requests are drawn at random, so each one is an observation, also with the same sticky key.
    """
    return {
        "weights": list(WEIGHTS),
        "hold_s": hold_s,
        "unit": "request",
        "minimum": {"candidate": 20, "stable": 20, "units": 20, "pairs": 20},
    }


def _watch(
    control: ControlClient,
    rollout: RolloutView,
    locust: LocustProcess,
    duration_s: float,
    show: Show,
) -> WatchedRelease:
    """Follow the release to its end and roll it back; whatever happens, stable has the traffic."""
    try:
        timeout_s = _PATIENCE * duration_s + 120
        outcome = follow(control, rollout, timeout_s, show, locust.check)
        if outcome.timed_out:
            control.abort(rollout.model)
        return _rolled_back(control, outcome, show)
    except BaseException:
        _take_back(control, rollout)
        raise


def _rolled_back(control: ControlClient, outcome: Followed, show: Show) -> WatchedRelease:
    """Roll the release back where it was promoted; return what was done."""
    view, steps, rolled_back_at = outcome.view, outcome.steps, None
    if promoted := view.status is RolloutStatus.PROMOTED:
        show(f"rolling back to {view.stable}")
        time.sleep(AFTER_S)
        sent_at = time.time()
        control.rollback(view.model)
        rolled_back_at = time.time()
        steps = (*steps[:-1], replace(steps[-1], ended=sent_at))
    status = "did not come to its end" if outcome.timed_out else view.status
    return WatchedRelease(
        candidate=view.candidate,
        stable=view.stable,
        steps=steps,
        promoted=promoted,
        why=f"{status}: {reason(view)}",
        rolled_back_at=rolled_back_at,
    )


def _take_back(control: ControlClient, rollout: RolloutView) -> None:
    """Give the traffic back to stable as far as possible; the first error is what is raised."""
    with suppress(VlserveError):
        if control.rollout(rollout.model).status.under_way:
            control.abort(rollout.model)
        elif control.model(rollout.model).stable == rollout.candidate:
            control.rollback(rollout.model)
