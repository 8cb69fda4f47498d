"""The search on the real stack: settings are loaded as asked, measured, kept with the version."""

import re
from pathlib import Path

import pytest

from support.engine_workers import worker_pids
from support.engines import on_triton
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.triton_repository import REPOSITORY
from vlserve.control.tuning import Serving, read_tuning
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack
from vlserve.tuning.trials import Load, Trials
from vlserve.tuning.tune import tune, write_tuning

pytestmark = on_triton

START = Serving(workers=1, threads=2, batch_size=4, max_batch_delay_ms=1)


def _threads(stack: RunningStack, version: str) -> int:
    """Return what the workers of a version are told, in the instance's folder."""
    (endpoint,) = endpoints(stack.settings)
    if endpoint.kind == "torchserve":
        return int((endpoint.folder / "threads" / version).read_text(encoding="utf-8"))
    text = (endpoint.folder / REPOSITORY / version / "config.pbtxt").read_text(encoding="utf-8")
    (threads,) = re.findall(r'key: "threads" value { string_value: "(\d+)" }', text)
    return int(threads)


@pytest.mark.long
def test_what_is_found_serves_the_version(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, new_model, 1)
    load = Load(data=None, seconds=1, warm_up_s=0)
    trials = Trials(archive, stack.control, stack.gateway_url, load, tmp_path / "runs")
    result = tune(trials, 60_000.0, START, cores=2, seconds=1.0, run_s=1)
    assert result.best is not None and result.best.error_rate == 0
    write_tuning(trials, result)
    tuning = read_tuning(archive)
    assert tuning is not None

    other = START.model_copy(update={"workers": 2, "threads": 1})
    trials.serve(other)
    stack.control.unload(new_model, 1)
    assert stack.control.register(archive, tuning).state == "ready"
    (version,) = stack.control.model(new_model).versions
    assert version.tuning == tuning
    assert version.workers_ready == {"engine-0": START.workers}
    assert len(worker_pids(stack.settings, new_model)[1]) == START.workers
    assert _threads(stack, f"{new_model}-1") == START.threads
    tunings = [e.detail["tuned"] for e in stack.control.history(new_model) if "tuned" in e.detail]
    assert tunings[-2:] == [str(other), str(START)]
