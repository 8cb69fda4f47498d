"""A model store of earlier code, taken over by today's: it serves, and its rollouts go on."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.engines import on_triton
from support.recorded import RECORDINGS, STORE, unpack
from support.running_stack import make_settings, wait_until
from vlserve.control.domain import EngineKind, RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Probe
from vlserve.testing import RunningStack, running_stack

pytestmark = on_triton

MODELS = ("tagger", "banner")
WITHIN_S = 120.0
BETWEEN_S = 0.25
"""Between two requests: what counts until it is seen is too little for a latency gate of the
recorded policy."""


@pytest.fixture(
    params=[
        *RECORDINGS[-1:],
        *(pytest.param(recording, marks=pytest.mark.long) for recording in RECORDINGS[:-1]),
    ]
)
def own_stack(
    engine_kind: EngineKind, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[RunningStack]:
    with running_stack(make_settings(unpack(request.param, tmp_path), engine_kind)) as stack:
        yield stack


def weights(own_stack: RunningStack) -> Mapping[str, Mapping[int, int]]:
    return {model.model: dict(model.weights) for model in own_stack.control.models()}


def evidence(view: RolloutView) -> tuple[int, int]:
    """Requests and pairs that were counted by now."""
    requests = sum(window.candidate.requests + window.stable.requests for window in view.windows)
    return requests, sum(window.pairs for window in view.windows)


def tags_by_v2(
    own_stack: RunningStack, model: str, version: int, probe: Probe
) -> list[dict[str, Any]]:
    """The answer to a probe, asked for in a protocol that came after the archive."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
        for name, value in probe.fields.items()
    ]
    answer = own_stack.http.post(
        f"/v2/models/{model}/versions/{version}/infer", json={"inputs": inputs}
    )
    assert answer.status_code == 200, answer.text
    tags, scores = (output["data"] for output in answer.json()["outputs"])
    return [
        {"tag": tag, "score": pytest.approx(score)} for tag, score in zip(tags, scores, strict=True)
    ]


def test_archives_serve_and_rollouts_go_on(own_stack: RunningStack) -> None:
    control, store = own_stack.control, own_stack.settings.project_dir / STORE
    wait_until(lambda: control.health().status == "ok", timeout_s=WITHIN_S)
    assert weights(own_stack) == {"tagger": {1: 75, 2: 25}, "banner": {1: 100}}

    probes = {}
    for model in MODELS:
        for version in (1, 2):
            manifest = verify_archive(store / model / str(version) / f"{model}-{version}.mar")
            for probe in manifest.probes:
                answer = own_stack.http.post(f"/predictions/{model}/{version}", json=probe.fields)
                assert answer.status_code == 200, answer.text
                body = answer.json()
                assert (body.pop("model"), body.pop("version")) == (model, version)
                assert body.keys() - {"request_id"} == probe.answer.keys()
                assert tags_by_v2(own_stack, model, version, probe) == body["tags"]
            probes[model] = manifest.probes[0].fields

    before = {model: control.rollout(model) for model in MODELS}
    for view in before.values():
        assert (view.status, view.candidate, view.stable) == (RolloutStatus.RUNNING, 2, 1)
        assert view.decision is not None
    assert min(evidence(view)[0] for view in before.values()) > 0
    assert evidence(before["banner"])[1] > 0

    def more_evidence(model: str) -> bool:
        time.sleep(BETWEEN_S)
        answer = own_stack.http.post(f"/predictions/{model}", json=probes[model])
        assert answer.status_code == 200, answer.text
        now, then = evidence(control.rollout(model)), evidence(before[model])
        return now[0] > then[0] and (model != "banner" or now[1] > then[1])

    for model in MODELS:
        wait_until(lambda model=model: more_evidence(model), timeout_s=WITHIN_S)
        assert control.pause(model).status is RolloutStatus.PAUSED
        assert control.resume(model).status is RolloutStatus.RUNNING

    assert control.promote("tagger").status is RolloutStatus.PROMOTED
    assert control.abort("banner").status is RolloutStatus.ABORTED
    assert weights(own_stack) == {"tagger": {2: 100}, "banner": {1: 100}}
    answers = {m: own_stack.http.post(f"/predictions/{m}", json=probes[m]).json() for m in MODELS}
    assert {m: answer["version"] for m, answer in answers.items()} == {"tagger": 2, "banner": 1}
    assert control.rollback("tagger").version == 1
