"""The search over a machine that is made up: what it finds, confirms, writes, and when it stops."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlserve.control.domain import State
from vlserve.control.tuning import Measured, Serving, Tuning, read_tuning
from vlserve.control.wire.views import Registered, Unloaded
from vlserve.errors import EngineUnavailable, LoadFailed, NotReady
from vlserve.exporter.echo import pack_echo
from vlserve.tuning.search import Point
from vlserve.tuning.trials import Load, Trials
from vlserve.tuning.tune import TuningResult, tune, write_tuning

START = Serving(workers=2, threads=1, batch_size=8, max_batch_delay_ms=1)


class MadeUp(Trials):
    """Answers grow with batch size up to 16; latency with connections. Two threads do not load."""

    gain = 5.0
    """Answers a second for each item of a batch."""

    def __init__(self, archive: Path, folder: Path, worse_when_confirmed: float = 1.0) -> None:
        none: Any = None
        super().__init__(archive, none, "http://127.0.0.1", Load(None, 1), folder)
        self.worse = worse_when_confirmed
        self.served: list[Serving] = []
        self.not_again: set[Serving] = set()
        self.now = 0.0

    def serve(self, serving: Serving) -> None:
        self.served.append(serving)
        if serving.threads == 2:
            raise LoadFailed("out of memory")
        if serving in self.not_again and self.served.count(serving) > 1:
            raise EngineUnavailable("no engine instance answers")

    def measure(self, serving: Serving, connections: int, seconds: int | None = None) -> Point:
        self.now += seconds or 1
        most = 100.0 + self.gain * min(serving.batch_size, 16) - 10 * serving.max_batch_delay_ms
        rps = min(40.0 * connections, most)
        p99_ms = 1000 * connections / rps * (self.worse if seconds else 1.0)
        return Point(serving, connections, rps, p99_ms / 2, p99_ms, 0.0)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_echo(tmp_path_factory.mktemp("tuned"), "tagger", 1)


def found_by(trials: MadeUp, slo_p99_ms: float, seconds: float = 1000.0) -> TuningResult:
    return tune(trials, slo_p99_ms, START, 2, seconds, 1, clock=lambda: trials.now)


def test_it_climbs_to_the_best_and_confirms_it(archive: Path, tmp_path: Path) -> None:
    trials = MadeUp(archive, tmp_path)
    result = found_by(trials, slo_p99_ms=60.0)
    assert result.best is not None and result.finished
    assert (result.best.serving.batch_size, result.best.serving.max_batch_delay_ms) == (16, 1)
    confirmation, own = result.points[-2:]  # the longer runs
    assert result.best is confirmation and own.serving == START
    assert result.failed[0] == "1 x 2, batch 8, 1 ms: out of memory"
    assert all(point.serving.threads == 1 for point in result.points)


def test_what_only_short_runs_find_better_is_not_chosen(archive: Path, tmp_path: Path) -> None:
    class Lucky(MadeUp):
        def measure(self, serving: Serving, connections: int, seconds: int | None = None) -> Point:
            point = super().measure(serving, connections, seconds)
            luck = 1.2 if serving != START and seconds is None else 1.0
            return replace(point, rps=point.rps * luck)

    trials = Lucky(archive, tmp_path)
    trials.gain = 0.1
    result = found_by(trials, slo_p99_ms=100.0)
    assert result.best is not None and result.best.serving == START
    assert result.points[-2].serving != START


def test_what_breaks_when_confirmed_is_not_chosen(archive: Path, tmp_path: Path) -> None:
    result = found_by(MadeUp(archive, tmp_path, worse_when_confirmed=1.5), slo_p99_ms=60.0)
    assert result.best is not None
    assert result.best.p99_ms is not None and result.best.p99_ms <= 60.0
    assert any(not point.held(60.0) for point in result.points)
    never = found_by(MadeUp(archive, tmp_path, worse_when_confirmed=99.0), slo_p99_ms=60.0)
    assert never.best is None


def test_what_does_not_load_again_is_not_chosen(archive: Path, tmp_path: Path) -> None:
    trials = MadeUp(archive, tmp_path)
    best = found_by(MadeUp(archive, tmp_path), slo_p99_ms=60.0).best
    assert best is not None
    trials.not_again = {best.serving}
    result = found_by(trials, slo_p99_ms=60.0)
    assert result.best is not None and result.best.serving != best.serving
    assert result.failed[-1] == f"{best.serving}: no engine instance answers"


class Control:
    """The control service's words that a trial needs."""

    def __init__(self, unloaded: State, untuned: str = "") -> None:
        self.unloaded, self.untuned = unloaded, untuned
        self.registered = False

    def models(self) -> list[Any]:
        return [SimpleNamespace(model="tagger", versions=[SimpleNamespace(version=1)])]

    def unload(self, model: str, version: int) -> Unloaded:
        return Unloaded(model=model, version=version, state=self.unloaded)

    def register(self, archive: Path, tuning: Tuning) -> Registered:
        self.registered = True
        return Registered(
            model="tagger",
            version=1,
            state=State.READY,
            already_registered=False,
            untuned=self.untuned,
        )


def test_a_setting_is_tried_only_when_it_is_in_force(archive: Path, tmp_path: Path) -> None:
    def trials(control: Any) -> Trials:
        return Trials(archive, control, "http://127.0.0.1", Load(None, 1), tmp_path)

    trials(Control(State.RETIRED)).serve(START)
    client = Control(State.DRAINING)
    with pytest.raises(NotReady, match="the run before"):
        trials(client).serve(START)
    assert not client.registered
    with pytest.raises(LoadFailed, match="out of memory"):
        trials(Control(State.RETIRED, untuned="out of memory")).serve(START)


def test_a_run_that_the_client_limited_says_so(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = SimpleNamespace(rps=50.0, p50_ms=1.0, p99_ms=2.0, error_rate=0.0)
    result = SimpleNamespace(figures=figures, client_saturated=True)
    monkeypatch.setattr("vlserve.tuning.trials.run_stress", lambda plan, folder: result)
    none: Any = None
    trials = Trials(archive, none, "http://127.0.0.1", Load(None, 1), tmp_path)
    assert trials.measure(START, 4) == Point(START, 4, 50.0, 1.0, 2.0, 0.0, client_saturated=True)


def test_an_impossible_limit_finds_nothing_and_says_how_near_it_came(
    archive: Path, tmp_path: Path
) -> None:
    result = found_by(MadeUp(archive, tmp_path), slo_p99_ms=5.0)
    assert result.best is None and result.nearest is not None
    assert result.nearest.p99_ms == pytest.approx(25.0)


def test_the_time_ends_it_after_the_first_run_at_the_least(archive: Path, tmp_path: Path) -> None:
    trials = MadeUp(archive, tmp_path)
    result = found_by(trials, slo_p99_ms=60.0, seconds=0.5)
    assert not result.finished
    assert [point.connections for point in result.points] == [1, 1]  # measured, and confirmed
    assert result.best is not None


def test_it_is_written_where_register_reads_it(archive: Path, tmp_path: Path) -> None:
    trials = MadeUp(archive, tmp_path)
    result = found_by(trials, slo_p99_ms=60.0)
    file, picture = write_tuning(trials, result)
    tuning = read_tuning(archive)
    assert tuning is not None and result.best is not None
    assert tuning.serving == result.best.serving
    assert isinstance(tuning.measured, Measured) and tuning.slo_p99_ms == 60.0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (file.name, picture.name) == ("tagger-1.tuning.json", "tagger-1.tuning.png")
