"""What `vlserve watch` prints of a rollout whose state the service cannot read."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vlserve.cli import app, release
from vlserve.cli.rollout_text import waiting, waits_for
from vlserve.control.client import ControlClient
from vlserve.control.domain import RolloutStatus
from vlserve.control.judge import Batch, JudgeState, Outcome, Policy, Standing, decide, observe
from vlserve.control.wire.rollout_views import DecisionView, RolloutView
from vlserve.control.wire.views import TrafficView, VersionTrafficView
from vlserve.errors import NoRelease
from vlserve.stack import stack

ERROR = "the kept state of the rollout cannot be read (judge.policy.gates.drift: unknown)"


def view(status: RolloutStatus) -> RolloutView:
    return RolloutView(
        id=1,
        model="tagger",
        candidate=2,
        stable=1,
        status=status,
        weights=(5, 100),
        step=0,
        weight=5,
        shadow_percent=0,
        held_s=0.0,
        hold_s=60.0,
        started_at="then",
        ended_at=None,
        decision=None,
        windows=(),
        state_error=ERROR,
    )


def test_the_reason_is_what_it_waits_for() -> None:
    assert waiting(view(RolloutStatus.RUNNING)) == ERROR
    assert waits_for(view(RolloutStatus.RUNNING)) == ERROR


def test_the_reason_is_printed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    release._print_place(view(RolloutStatus.ABORTED))
    lines = capsys.readouterr().out.splitlines()
    by_hand = "why: by hand, with `vlserve abort` or `vlserve rollback`"
    assert lines == ["tagger is back on 1; 2 was taken back", by_hand, ERROR]


def judged(status: RolloutStatus, state: JudgeState, standing: Standing) -> RolloutView:
    decision = DecisionView.model_validate(decide(state, standing))
    return view(status).model_copy(update={"state_error": "", "decision": decision})


def state(candidate: int, stable: int) -> JudgeState:
    """After that many good requests to each version, evenly mixed."""
    start = JudgeState.start(Policy(weights=(5, 100)), has_tags=False)
    total = candidate + stable
    outcomes = [
        Outcome(
            candidate=number * candidate // total != (number + 1) * candidate // total,
            failed=False,
            refused=False,
            latency_ms=10.0,
        )
        for number in range(total)
    ]
    return observe(start, Batch(outcomes, ()))


def test_a_step_without_traffic_says_what_it_waits_for_and_what_ends_it() -> None:
    text = waiting(judged(RolloutStatus.RUNNING, state(0, 0), Standing(70.0, True, True)))
    assert text == (
        "no request has been counted yet; waits for requests to the candidate: 0 of 400 (errors), "
        "answered requests of the candidate: 0 of 400 (latency_p50, latency_p99), "
        "callers: 0 of 400 (sample_ratio); it goes on with that traffic; "
        "`vlserve promote tagger` and `vlserve abort tagger` end it now"
    )


def test_the_counts_so_far_are_said() -> None:
    text = waiting(judged(RolloutStatus.RUNNING, state(12, 388), Standing(7.0, True, None)))
    assert text.startswith("the candidate is of unknown health; held for 7 of 60 s; waits for ")
    assert "requests to the candidate: 12 of 400 (errors)" in text
    assert "no request" not in text


def test_what_waits_for_no_traffic_says_that_alone() -> None:
    text = waiting(judged(RolloutStatus.RUNNING, state(600, 11400), Standing(7.0, True, True)))
    assert text == "held for 7 of 60 s"


def test_what_a_person_took_back_is_not_explained_by_the_judge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rollout = judged(RolloutStatus.ABORTED, state(0, 0), Standing(7.0, True, True))
    release._print_place(rollout)
    assert "held for" not in capsys.readouterr().out
    rollback = judged(RolloutStatus.ROLLED_BACK, state(0, 0), Standing(7.0, True, False))
    release._print_place(rollback)
    assert "why: the candidate is not healthy" in capsys.readouterr().out


def test_status_shows_what_a_rollout_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    current = judged(RolloutStatus.RUNNING, state(12, 388), Standing(70.0, True, True))
    promoted_view = current.model_copy(update={"status": RolloutStatus.PROMOTED})
    models = [SimpleNamespace(model=name, versions=()) for name in ("tagger", "other", "never")]

    def rollout(model: str) -> RolloutView:
        if model == "never":
            raise NoRelease("never was never released in steps")
        return current if model == "tagger" else promoted_view

    control = SimpleNamespace(
        health=lambda: SimpleNamespace(status="ok", warnings=("a key is gone",)),
        models=lambda: models,
        rollout=rollout,
        traffic=lambda: [_traffic(12, 388)],
    )
    monkeypatch.setattr(ControlClient, "of", lambda _: nullcontext(control))
    monkeypatch.setattr(stack, "status", lambda _: [])
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0, result.output
    assert (
        "tagger 2 gets 5 % of traffic (step 1 of 2): waits for requests to the candidate: 12"
        in (" ".join(result.stdout.split()))
    )
    assert "warning: a key is gone" in result.stdout
    assert result.stdout.count("of traffic") == 1
    assert "tagger 2 12 0 10.0 20.0" in " ".join(result.stdout.split())


def test_watch_shows_recent_requests_of_both_versions() -> None:
    rollout = judged(RolloutStatus.RUNNING, state(12, 388), Standing(70.0, True, True))
    control = SimpleNamespace(traffic=lambda: [_traffic(12, 388)])
    assert release._recent_traffic(control, rollout) == (  # type: ignore[arg-type]
        "; last 15 minutes: 1: 388 requests, 0 failed, p99 20 ms; 2: 12 requests, 0 failed, "
        "p99 20 ms"
    )


def _traffic(candidate: int, stable: int) -> TrafficView:
    figures = {"failed": 0, "p50_ms": 10.0, "p99_ms": 20.0}
    return TrafficView(
        model="tagger",
        requests=candidate + stable,
        per_second=1.0,
        minutes=(),
        versions=tuple(
            VersionTrafficView(version=version, requests=requests, **figures)
            for version, requests in ((1, stable), (2, candidate))
        ),
        estimated=False,
        **figures,
    )
