"""A release in steps, followed to its end: which step was surely in force when."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vlserve.control.client import ControlClient
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.loadgen.release_checks import Step

POLL_S = 0.2

Show = Callable[[str], None]


@dataclass(frozen=True)
class Followed:
    """``steps``: those that were seen; ``ended`` of the last one is when the release was last seen
    in it. ``timed_out``: it had not come to its end, and is still under way."""

    view: RolloutView
    steps: tuple[Step, ...]
    timed_out: bool


def follow(
    control: ControlClient,
    started: RolloutView,
    timeout_s: float,
    show: Show,
    keep_watch: Callable[[], object] = lambda: None,
) -> Followed:
    """From the answer of its start on. A step is in force from the first answer that names it to
    the time of asking for the last one. ``keep_watch`` is called meanwhile, and may raise."""
    view, steps, place = started, [_begun(started)], started.step
    deadline = time.monotonic() + timeout_s
    shown: object = None
    while view.status.under_way and time.monotonic() < deadline:
        time.sleep(POLL_S)
        asked_at = time.time()
        view = control.rollout(started.model)
        if not view.status.under_way:
            break
        if view.step == place:
            steps[-1] = replace(steps[-1], ended=asked_at)
        else:
            steps.append(_begun(view))
            place = view.step
        if (state := (view.step, view.status)) != shown:
            show(describe(view))
            shown = state
        keep_watch()
    return Followed(view, tuple(steps), view.status.under_way)


def describe(view: RolloutView) -> str:
    """Where it is, in a few words."""
    share = f"{view.weight} %"
    if view.shadow_percent:
        share = f"a shadow of {view.shadow_percent} %"
    return f"{view.model} {view.candidate} at {share}"


def reason(view: RolloutView) -> str:
    """The judge's, for the last thing that he did."""
    return view.decision.reason if view.decision else "no decision yet"


def _begun(view: RolloutView) -> Step:
    now = time.time()
    return Step(view.weight, now, now)
