"""The game day: release six copies of a model's stable version, one after another.

The copies (twins) have a model name and traffic of their own; the model itself is not touched.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind, State
from vlserve.drill.capacity import Pace, measure_pace
from vlserve.drill.cases import (
    PROMOTED,
    REFUSED,
    Case,
    CaseDecision,
    CaseResult,
    Policy,
    cases,
    decision_of,
    judge_cases,
)
from vlserve.drill.checked_release import stored_archive
from vlserve.drill.own_archives import refuse_adopted
from vlserve.drill.release_watch import Show, follow
from vlserve.drill.twin import Fault, Original, spoil, twin_name
from vlserve.errors import ArchiveError, ControlError, LoadFailed, NotReady, VlserveError
from vlserve.loadgen.release_traffic import ReleaseTraffic, running_traffic
from vlserve.settings import Settings

FASTEST_PER_S = 20.0
LONGEST_CASE_S = 120.0
LONGEST_S = 540.0
"""Of all cases together; a case without time left is undecided."""
POLICY = Policy()
_AFTERWARDS_S = 1.0
"""How long the traffic goes on after each decision, so that its effect is seen."""


@dataclass(frozen=True)
class DrillResult:
    """What a drill came to. result.json holds the same."""

    model: str
    twin: str
    """The model name of the copies."""
    rate_per_s: float
    instances: int
    took_s: float
    cases: tuple[CaseResult, ...]
    passed: bool
    report: Path
    result: Path


def run_drill(
    settings: Settings,
    control: ControlClient,
    model: str,
    folder: Path,
    show: Show,
    policy: Policy = POLICY,
    fastest_per_s: float = FASTEST_PER_S,
) -> DrillResult:
    """Run the six cases and judge them.

    Errors of the control service and of Locust are raised: then nothing was judged. When this call
    ends, no twin but the stable one is loaded.

    Args:
        settings: Of the stack that is up.
        control: Its control service.
        model: Name of the model whose stable version is copied.
        folder: Gets result.json, report.html, requests.jsonl and locust.log.
        show: Gets messages about the progress.
        policy: Of the six releases.
        fastest_per_s: The highest rate of requests.
    """
    began = time.monotonic()
    view = control.model(model)
    stable = view.stable
    if stable is None:
        raise NotReady(f"{model} has no stable version to drill with")
    archive = stored_archive(settings, model, stable)
    folder = folder.resolve()
    twin = twin_name(model)
    with tempfile.TemporaryDirectory(prefix="vlserve-drill-") as bench, _clean_up(control, twin):
        refuse_adopted(archive)
        original = Original(archive, Path(bench) / "original")
        engine = next(each.engine for each in view.versions if each.version == stable)
        stage = _Stage(control, original, Path(bench), twin, engine, policy, show)
        stage.set_up()
        show("measuring how fast it answers")
        pace = measure_pace(settings, twin, archive, fastest_per_s)
        with running_traffic(_traffic(settings, twin, archive, pace), folder) as locust:
            decisions = [stage.run(case, locust.check) for case in cases(pace.latency_s)]
            requests = locust.finish()
    results = judge_cases(decisions, requests, settings.engine.instances)
    result = DrillResult(
        model=model,
        twin=twin,
        rate_per_s=pace.rate_per_s,
        instances=settings.engine.instances,
        took_s=round(time.monotonic() - began, 1),
        cases=results,
        passed=all(case.passed for case in results),
        report=locust.report,
        result=folder / "result.json",
    )
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result


class _Stage:
    """Registers twins under the next free version numbers and releases them."""

    def __init__(
        self,
        control: ControlClient,
        original: Original,
        bench: Path,
        twin: str,
        engine: EngineKind,
        policy: Policy,
        show: Show,
    ) -> None:
        self._control = control
        self._original = original
        self._bench = bench
        self._twin = twin
        self._engine = engine
        self._policy = policy
        self._show = show
        self._deadline = time.monotonic() + LONGEST_S
        views = {view.model: view for view in control.models()}
        versions = views[twin].versions if twin in views else ()
        self._next = 1 + max((version.version for version in versions), default=0)

    def set_up(self) -> None:
        """Make a good twin stable and unload all others, whatever an earlier drill left."""
        with suppress(ControlError):  # no release is under way
            self._control.abort(self._twin)
        version = self._number()
        self._show(f"registering {self._twin} {version}, the stable one")
        with self._packed(version, Case("stable", Fault(), PROMOTED)) as archive:
            self._control.register(archive, engine=self._engine)
        self._control.release(self._twin, version)
        unload_idle(self._control, self._twin)

    def run(self, case: Case, keep_watch: Callable[[], None]) -> CaseDecision:
        """Register and release a case's twin; afterwards only the stable version is loaded."""
        version = self._number()
        began = time.time()
        self._show(f"{case.name}: registering {self._twin} {version}")
        try:
            with self._packed(version, case) as archive:
                self._control.register(archive, engine=self._engine)
        except (ArchiveError, LoadFailed) as error:
            time.sleep(_AFTERWARDS_S)
            after_s = time.time() - began - _AFTERWARDS_S
            return CaseDecision(case, version, began, REFUSED, (), str(error), after_s)
        decision = self._release(case, version, began, keep_watch)
        time.sleep(_AFTERWARDS_S)
        if decision.decision == PROMOTED and case.expected != PROMOTED:
            self._control.rollback(self._twin)
        unload_idle(self._control, self._twin)
        return decision

    def _release(
        self, case: Case, version: int, began: float, keep_watch: Callable[[], None]
    ) -> CaseDecision:
        released_at = time.monotonic()
        view = self._control.start_rollout(self._twin, version, self._policy.changes(case.shadow))
        outcome = follow(
            self._control,
            view,
            min(LONGEST_CASE_S, self._deadline - released_at),
            lambda message: self._show(f"{case.name}: {message}"),
            keep_watch,
        )
        after_s = time.monotonic() - released_at
        decision, gates, why = decision_of(outcome.view)
        if outcome.timed_out:
            self._control.abort(self._twin)
        self._show(f"{case.name}: {decision}")
        return CaseDecision(case, version, began, decision, gates, why, after_s)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    @contextmanager
    def _packed(self, version: int, case: Case) -> Iterator[Path]:
        """Pack the twin's archive, and remove it afterwards: the model store has its own copy."""
        archive = self._original.pack_twin(self._bench, version, case.fault)
        try:
            if case.spoilt:
                spoil(archive)
            yield archive
        finally:
            archive.unlink()


def unload_idle(control: ControlClient, model: str) -> None:
    """Unload all versions without traffic."""
    for version in control.model(model).versions:
        if version.state in (State.READY, State.DRAINING):
            control.unload(model, version.version)


@contextmanager
def _clean_up(control: ControlClient, twin: str) -> Iterator[None]:
    """End the release and unload the twins, also after Ctrl-C and errors, which are raised."""
    try:
        yield
    finally:
        with suppress(VlserveError):  # no release is under way
            control.abort(twin)
        with suppress(VlserveError):
            unload_idle(control, twin)


def _traffic(settings: Settings, twin: str, archive: Path, pace: Pace) -> ReleaseTraffic:
    return ReleaseTraffic(
        url=settings.gateway_url,
        model=twin,
        archive=archive,
        rate_per_s=pace.rate_per_s,
        api_key=next(iter(settings.gateway.api_keys), ""),
    )
