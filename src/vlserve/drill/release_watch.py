"""Follow a release to its end, and note when each step was certainly in force."""

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
    """A release that was followed."""

    view: RolloutView
    """Its last view."""
    steps: tuple[Step, ...]
    """The steps that were seen."""
    timed_out: bool
    """Whether the time was over first, so that the release is still under way."""


def follow(
    control: ControlClient,
    rollout: RolloutView,
    timeout_s: float,
    show: Show,
    keep_watch: Callable[[], object] = lambda: None,
) -> Followed:
    """Poll a release until it has ended.

    A step was in force from the first answer that names it until the question whose answer was the
    last to name it.

    Args:
        control: The control service.
        rollout: Its answer to the start of the release.
        timeout_s: When to stop.
        show: Gets a message for each step and status.
        keep_watch: Called at each poll; may raise.
    """
    view, steps, place = rollout, [_first_seen(rollout)], rollout.step
    deadline = time.monotonic() + timeout_s
    last_shown: object = None
    while view.status.under_way and time.monotonic() < deadline:
        time.sleep(POLL_S)
        sent_at = time.time()
        view = control.rollout(rollout.model)
        if not view.status.under_way:
            break
        if view.step == place:
            steps[-1] = replace(steps[-1], ended=sent_at)
        else:
            steps.append(_first_seen(view))
            place = view.step
        if (state := (view.step, view.status)) != last_shown:
            show(describe(view))
            last_shown = state
        keep_watch()
    return Followed(view, tuple(steps), view.status.under_way)


def describe(view: RolloutView) -> str:
    """Return where the release is, in a few words."""
    share = f"{view.weight} %"
    if view.shadow_percent:
        share = f"a shadow of {view.shadow_percent} %"
    return f"{view.model} {view.candidate} at {share}"


def reason(view: RolloutView) -> str:
    """Return the judge's reason for its last decision."""
    return view.decision.reason if view.decision else "no decision yet"


def _first_seen(view: RolloutView) -> Step:
    now = time.time()
    return Step(view.weight, now, now)
