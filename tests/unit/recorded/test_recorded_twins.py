"""A drill works on a recorded archive: its twins run in the runtime that is frozen into it."""

from pathlib import Path

import pytest

from vlserve.batch.offline import answer_offline
from vlserve.drill.twin import Fault, Original
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.task import difference


@pytest.fixture(scope="module")
def archive(project: Path) -> Path:
    return min((project / "model_store").rglob("*.mar"))


def test_a_twin_answers_the_probes_in_the_older_runtime(archive: Path, tmp_path: Path) -> None:
    probes = verify_archive(archive).probes
    original = Original(archive, tmp_path / "unpacked")
    twin = original.pack_twin(tmp_path, 7, Fault("differs"))
    requests = [{"id": place, "fields": probe.fields} for place, probe in enumerate(probes)]
    answers = [line["answer"] for line in answer_offline(twin, requests)]
    expected = [probe.answer for probe in probes]
    assert [difference(*pair) for pair in zip(expected, answers, strict=True)] == [None] * 3
    fields = {**probes[0].fields, "text": "another title"}
    own, faulty = (
        next(answer_offline(path, [{"id": 0, "fields": fields}])) for path in (archive, twin)
    )
    assert difference(own["answer"], faulty["answer"]) is not None
