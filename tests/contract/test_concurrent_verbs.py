"""Twenty operators at once: each word is done or refused with a reason; the way back works
afterwards, and ledger, engine and gateway say the same."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.control_api_server import RunningControl
from support.running_stack import wait_until
from vlserve.control.client import ControlClient
from vlserve.control.domain import State
from vlserve.errors import ControlError, NoRelease, NothingToRollBackTo, StackError, VlserveError
from vlserve.exporter.echo import pack_echo

OPERATORS = 20
WORDS_EACH = 12
MODELS = ("first", "second")
VERSIONS = (1, 2, 3)
PLAN = {"weights": [50, 100], "hold_s": 60}
NOT_BEGUN = ("abort", "promote", "pause", "rollout")
"""Words to which `NoRelease` is an answer."""

Word = Callable[[], object]


@pytest.fixture
def archive_files(control_api: RunningControl, tmp_path: Path) -> dict[tuple[str, int], Path]:
    """The archives of all versions, of which two were released."""
    files = {
        (model, version): pack_echo(tmp_path, model, version)
        for model in MODELS
        for version in VERSIONS
    }
    for archive in files.values():
        control_api.client.register(archive)
    for model in MODELS:
        for version in (1, 2):
            control_api.client.release(model, version)
    return files


def words(control: ControlClient, archive: Path, model: str, version: int) -> dict[str, Word]:
    return {
        "register": lambda: control.register(archive),
        "release": lambda: control.release(model, version),
        "start": lambda: control.start_rollout(model, version, PLAN),
        "pause": lambda: control.pause(model),
        "promote": lambda: control.promote(model),
        "abort": lambda: control.abort(model),
        "rollback": lambda: control.rollback(model),
        "unload": lambda: control.unload(model, version),
        "delete": lambda: control.delete(model, version),
        "status": control.models,
        "health": control.health,
        "history": lambda: control.history(model),
        "rollout": lambda: control.rollout(model),
    }


def operate(
    control: ControlClient, archives: dict[tuple[str, int], Path], seed: int
) -> Sequence[str]:
    """Say words that are drawn; return those that were answered by no reason of theirs."""
    draw, faults = random.Random(seed), []
    for _ in range(WORDS_EACH):
        model, version = draw.choice(MODELS), draw.choice(VERSIONS)
        verbs = words(control, archives[model, version], model, version)
        name = draw.choice(list(verbs))
        try:
            verbs[name]()
        except VlserveError as error:
            strange = isinstance(error, NoRelease) and name not in NOT_BEGUN
            if strange or type(error) is ControlError or isinstance(error, StackError):
                faults.append(f"{name} {model} {version}: {error!r}")
    return faults


def test_every_word_of_twenty_operators_is_answered(
    control_api: RunningControl, archive_files: dict[tuple[str, int], Path]
) -> None:
    client = control_api.client
    with ThreadPoolExecutor(OPERATORS) as pool:
        runs = [pool.submit(operate, client, archive_files, seed) for seed in range(OPERATORS)]
        assert [fault for run in runs for fault in run.result()] == []
    wait_until(lambda: client.health().status == "ok")
    for model in MODELS:
        _assert_one_truth(control_api, model)
        _go_all_the_way_back(client, archive_files, model)
        _assert_one_truth(control_api, model)


def _assert_one_truth(control: RunningControl, model: str) -> None:
    view = control.client.model(model)
    assert sum(view.weights.values()) == 100
    route = control.gateway.route(model)
    assert dict(route.weights) == dict(view.weights)
    versions = [each.version for each in view.versions if each.state.routable]
    assert sorted(route.versions) == versions
    assert {each.state for each in view.versions if each.weight} <= {State.STABLE, State.CANARY}
    keys = control.engine.held["engine-0"]
    wait_until(lambda: sorted(version for name, version in keys if name == model) == versions)


def _go_all_the_way_back(
    client: ControlClient, archives: dict[tuple[str, int], Path], model: str
) -> None:
    for view in client.model(model).versions:
        if view.state is State.DELETED:
            client.register(archives[model, view.version])
    with pytest.raises(NothingToRollBackTo):
        for _ in range(OPERATORS * WORDS_EACH):
            client.rollback(model)
