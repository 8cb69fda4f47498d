"""release, watch, pause, resume, promote, abort, rollback: the traffic of a version."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from vlserve.cli.directly import UNREACHED, abort_directly, roll_back_directly
from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import (
    MAX_VERSION,
    Group,
    Model,
    Version,
    control_client,
    stack_settings,
)
from vlserve.cli.rollout_text import place, waiting, waits_for, why_back
from vlserve.control.client import ControlClient
from vlserve.control.control_access import remote_access
from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.control.wire.views import Released

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_POLL_S = 1.0
_SHOW_EVERY_S = 10.0
"""How often the counts are shown while nothing else changes."""


def _weights(text: str) -> list[int]:
    try:
        return [int(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} is not a list like 5,25,50,100") from error


def _percent(text: str) -> int:
    try:
        return int(text.strip().removesuffix("%"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a percentage like 20%") from error


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if match is None or (match[2] or "s") not in _UNITS_S:
        raise ValueError(f"{text!r} is not a time like 60s or 10m")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "weights": ("--weights", _weights),
    "hold_s": ("--hold", _seconds),
    "shadow_percent": ("--shadow", _percent),
    "keep_s": ("--keep", _seconds),
}
"""Entry of rollout.yaml -> the option that changes it for one rollout, and how that is read."""


def _changes(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the entries of rollout.yaml that options change.

    Raises:
        typer.BadParameter: names the option of which no policy may have the value.
    """
    from vlserve.control.judge.policy import Policy

    changes: dict[str, Any] = {}
    for name, text in texts.items():
        option, parse = _OPTIONS[name]
        try:
            if text is not None:
                changes[name] = parse(text)
                Policy.model_validate({name: changes[name]})
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(message, param_hint=f"'{option}'") from error
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"'{option}'") from error
    return changes


def release(
    model: Model,
    version: Version,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The version's share of traffic at each step in percent, e.g. 5,25,50,100. "
            "Default: weights in serving_config/rollout.yaml."
        ),
    ] = None,
    hold: Annotated[
        str | None,
        typer.Option(
            help="Shortest stay at each step, with a unit: ms, s, m or h, e.g. 60s. "
            "Default: hold_s in serving_config/rollout.yaml."
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            help="Share of requests that are copied to the version before it gets traffic, "
            "in percent, e.g. 20%; 0: no shadow step. "
            "Default: shadow_percent in serving_config/rollout.yaml."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="How long a version that was taken back stays loaded, with a unit, e.g. 10m. "
            "Default: keep_s in serving_config/rollout.yaml."
        ),
    ] = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="Send all traffic at once. Default: in steps."),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait for the end of the rollout; exit code 1 if the version is taken back. "
            "Default: return once the first step is in force.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a rollout: send a model's traffic to a version in steps that the gates judge.

    A model's first version gets all traffic at once. The version before stays loaded for a
    rollback.
    """
    changes = _changes(
        {"weights": weights, "hold_s": hold, "shadow_percent": shadow, "keep_s": keep}
    )
    if now and (changes or wait):
        raise typer.BadParameter("with --now there are no steps to set or to wait for")
    with control_client() as control:
        first = not changes and control.model(model).stable is None  # nothing to compare it with
        if now or first:
            with progress(f"releasing {model} {version}"):
                outcome = control.release(model, version)
            print_json(outcome) if as_json else _print_released(outcome)
            return
        rollout = control.start_rollout(model, version, changes)
        if wait:
            _follow(control, rollout, as_json)
            return
    if as_json:
        print_json(rollout)
        return
    _print_place(rollout)
    print_line(f"next: vlserve watch {model}, or vlserve pause | promote | abort {model}")


def watch(model: Model, as_json: AsJson = False) -> None:
    """Follow the rollout under way to its end; exit code 1 if the version is taken back."""
    with control_client() as control:
        _follow(control, control.rollout(model), as_json)


def pause(model: Model, as_json: AsJson = False) -> None:
    """Stay at the present step; an alarm of a gate still takes the version back."""
    _steer(model, as_json, ControlClient.pause)


def resume(model: Model, as_json: AsJson = False) -> None:
    """Continue a paused rollout."""
    _steer(model, as_json, ControlClient.resume)


def promote(model: Model, as_json: AsJson = False) -> None:
    """End the rollout now: send all traffic to the candidate."""
    _steer(model, as_json, ControlClient.promote)


def abort(model: Model, as_json: AsJson = False) -> None:
    """End the rollout now: send all traffic back to the stable version."""
    try:
        with control_client() as control:
            view = control.abort(model)
    except UNREACHED as down:
        if remote_access():
            raise
        view = abort_directly(stack_settings(), model, down)
    print_json(view) if as_json else _print_place(view)


def rollback(
    model: Model,
    version: Annotated[
        int | None,
        typer.Argument(
            min=1,
            max=MAX_VERSION,
            help="Version to go back to. Default: the previous stable version.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send all traffic back to the previous stable version, or to VERSION."""
    with progress(f"rolling back {model}"):
        try:
            with control_client() as control:
                outcome = control.rollback(model, version)
        except UNREACHED as down:
            if remote_access():
                raise
            outcome = roll_back_directly(stack_settings(), model, version, down)
    if as_json:
        print_json(outcome)
        return
    print_line(
        f"{model} is back on {outcome.version}; {outcome.previous} stays loaded without traffic"
    )
    _print_unrecorded(outcome.unrecorded)


def _steer(model: str, as_json: bool, word: Callable[[ControlClient, str], RolloutView]) -> None:
    with control_client() as control:
        view = word(control, model)
    print_json(view) if as_json else _print_place(view)


def _follow(control: ControlClient, view: RolloutView, as_json: bool) -> None:
    with progress(f"releasing {view.model} {view.candidate}") as show:
        last_state, last_at = None, 0.0
        while view.status.under_way:
            state = (view.step, view.status, waits_for(view))
            if state != last_state or time.monotonic() - last_at > _SHOW_EVERY_S:
                show(f"{place(view)}: {waiting(view)}{_recent_traffic(control, view)}")
                last_state, last_at = state, time.monotonic()
            time.sleep(_POLL_S)
            view = control.rollout(view.model)
    if as_json:
        print_json(view)
    else:
        _print_place(view)
        _print_gates(view)
    if view.status is not RolloutStatus.PROMOTED:
        raise typer.Exit(1)


def _recent_traffic(control: ControlClient, view: RolloutView) -> str:
    """Return what both versions answered in the last 15 minutes, in words; empty without any."""
    of_model = next((each for each in control.traffic() if each.model == view.model), None)
    versions = of_model.versions if of_model else ()
    figures = [
        f"{each.version}: {each.requests} requests, {each.failed} failed, p99 {each.p99_ms:.3g} ms"
        for each in versions
        if each.version in (view.candidate, view.stable) and each.p99_ms is not None
    ]
    return f"; last 15 minutes: {'; '.join(figures)}" if figures else ""


def _print_place(view: RolloutView) -> None:
    print_line(place(view))
    if view.status.under_way and view.decision:
        print_line(waiting(view))
    if why := why_back(view):
        print_line(f"why: {why}")
    if view.state_error:
        print_line(view.state_error)
    _print_unrecorded(view.unrecorded)


def _print_unrecorded(why: str) -> None:
    if why:
        print_line(f"the gateway has changed, and the ledger is told later: {why}")


def _print_gates(view: RolloutView) -> None:
    if view.decision is not None:
        rows = [(gate.gate, gate.verdict, gate.summary) for gate in view.decision.gates]
        print_table(("GATE", "VERDICT", "FIGURES"), rows)


def _print_released(outcome: Released) -> None:
    if outcome.already_released:
        print_line(f"{outcome.model} {outcome.version} had all traffic before: nothing to do")
        return
    before = f", {outcome.previous} stays loaded" if outcome.previous else ""
    print_line(f"{outcome.model} {outcome.version} has all traffic{before}")


def add_to(app: typer.Typer) -> None:
    for command in (release, watch, pause, resume, promote, abort, rollback):
        app.command(rich_help_panel=Group.ROLLOUT)(command)
