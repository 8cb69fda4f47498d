"""One release of a real model, with callers of every kind, judged by what they saw; and the
rollback after it, which leaves the model as it was."""

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
from vlserve.drill.follow import Followed, Show, follow, reason
from vlserve.drill.pace import measured_pace
from vlserve.drill.release_result import CheckedRelease
from vlserve.drill.report import add_section
from vlserve.errors import NotReady, StressError, VlserveError
from vlserve.exporter.pack import archive_name
from vlserve.loadgen.release_checks import (
    Limits,
    WatchedRelease,
    check_release,
    rollback_ms,
    step_figures,
    version_figures,
)
from vlserve.loadgen.release_traffic import CallersPlan, RunningCallers, calling
from vlserve.settings import Settings

WEIGHTS = (10, 30, 60, 100)
FASTEST_PER_S = 40.0
STICKY_SHARE, ASK_SHARE = 0.5, 0.1
COMES_AGAIN = 3
"""Times that a caller with a key is to be seen in each step."""
AFTER_S = 3.0
"""So long callers go on after the rollback."""
_PATIENCE = 6
"""A release may take so many times what its holds add up to, and two minutes more."""


def stored_archive(settings: Settings, model: str, version: int) -> Path:
    """The archive in the model store of this stack."""
    archive = settings.model_store / model / str(version) / archive_name(model, version)
    if not archive.is_file():
        raise StressError(
            f"{archive} is not there: this command runs where the stack's model store is"
        )
    return archive


def candidate_of(control: ControlClient, model: str) -> int:
    """The newest version that is ready and not in force. NotReady if there is none."""
    view = control.model(model)
    ready = [v.version for v in view.versions if v.state is State.READY]
    if view.stable is None or not ready:
        raise NotReady(
            f"{model} needs a stable version and another that is ready: `vlserve register` one"
        )
    return max(ready)


def check_from_outside(
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
    """Release ``version`` (None: the newest that is ready) in four steps that take ``duration_s``
    together, roll it back, and judge. ``folder`` gets report.html, result.json, calls.jsonl and
    locust.log. Errors as the control service and Locust raise them: nothing was judged then."""
    candidate = version or candidate_of(control, model)
    stable = control.model(model).stable
    if stable is None:
        raise NotReady(f"{model} has no stable version to go back to")
    archive = stored_archive(settings, model, stable)
    show("measuring how fast it answers")
    rate = rate_per_s or measured_pace(settings, model, archive, FASTEST_PER_S).rate_per_s
    hold_s = duration_s / len(WEIGHTS)
    plan = CallersPlan(
        url=settings.gateway_url,
        model=model,
        archive=archive,
        rate_per_s=rate,
        data=data,
        sticky_share=STICKY_SHARE,
        callers=max(20, int(rate * STICKY_SHARE * hold_s / COMES_AGAIN)),
        ask=(stable, candidate),
        ask_share=ASK_SHARE,
        api_key=next(iter(settings.gateway.api_keys), ""),
    )
    show(f"{rate:g} requests/s")
    with calling(plan, folder) as callers:
        started = control.start_rollout(model, candidate, changes_for(hold_s))
        watched = _watch(control, started, callers, duration_s, show)
        time.sleep(AFTER_S)
        calls = callers.end()
    checks = check_release(calls, watched, limits)
    broken = [f"{check.name} ({check.said})" for check in checks if not check.passed]
    result = CheckedRelease(
        model=model,
        candidate=candidate,
        stable=stable,
        rate_per_s=rate,
        passed=not broken,
        verdict=f"broke: {'; '.join(broken)}" if broken else "every check held",
        checks=checks,
        steps=step_figures(calls, watched),
        versions=version_figures(calls, watched),
        rollback_ms=rollback_ms(calls, watched),
        report=callers.report,
        result=folder.resolve() / "result.json",
    )
    add_section(callers.report, result)
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result


def changes_for(hold_s: float) -> Mapping[str, Any]:
    """The release's own policy: all steps in a short time. Its callers send random requests, so
    every request is an observation, also of one caller."""
    return {
        "weights": list(WEIGHTS),
        "hold_s": hold_s,
        "unit": "request",
        "minimum": {"candidate": 20, "stable": 20, "units": 20, "pairs": 20},
    }


def _watch(
    control: ControlClient,
    started: RolloutView,
    callers: RunningCallers,
    duration_s: float,
    show: Show,
) -> WatchedRelease:
    """To its end and back again; whatever happens, the stable version has the traffic."""
    try:
        timeout_s = _PATIENCE * duration_s + 120
        followed = follow(control, started, timeout_s, show, callers.check)
        if followed.timed_out:
            control.abort(started.model)
        return _rolled_back(control, followed, show)
    except BaseException:
        _take_back(control, started)
        raise


def _rolled_back(control: ControlClient, followed: Followed, show: Show) -> WatchedRelease:
    """What was followed, and the rollback where there was something to roll back."""
    view, steps, rolled_back_at = followed.view, followed.steps, None
    if promoted := view.status is RolloutStatus.PROMOTED:
        show(f"rolling back to {view.stable}")
        time.sleep(AFTER_S)
        asked_at = time.time()
        control.rollback(view.model)
        rolled_back_at = time.time()
        steps = (*steps[:-1], replace(steps[-1], ended=asked_at))
    ended = "did not come to its end" if followed.timed_out else view.status
    return WatchedRelease(
        candidate=view.candidate,
        stable=view.stable,
        steps=steps,
        promoted=promoted,
        why=f"{ended}: {reason(view)}",
        rolled_back_at=rolled_back_at,
    )


def _take_back(control: ControlClient, started: RolloutView) -> None:
    """As far as it can be done; what went wrong before is what is raised."""
    with suppress(VlserveError):
        if control.rollout(started.model).status.under_way:
            control.abort(started.model)
        elif control.model(started.model).stable == started.candidate:
            control.rollback(started.model)
