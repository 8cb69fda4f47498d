"""Every row of docs/reference/request-forms.md, sent to a real TorchServe worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from support.recorded import RECORDINGS, STORE, unpack
from support.request_forms import variants
from support.request_variant import READ, Variant
from support.torchserve_worker import Worker, WorkerRequest, running_worker
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import unpack_archive

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "request-forms.md"
VARIANTS = variants()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("model") / "unpacked"
    unpack_archive(pack_echo(tmp_path_factory.mktemp("archive"), "m", 1), folder)
    with running_worker(folder, tmp_path_factory.mktemp("worker")) as worker:
        assert worker.load(folder) == (200, "loaded model m")
        yield worker


def as_handed_over(variant: Variant) -> WorkerRequest:
    """As gateway and TorchServe hand it to a worker."""
    query = urlencode([(name, value) for name, value in variant.query])
    fields = {
        "x-vlserve-path": f"/predictions/m?{query}" if query else "/predictions/m",
        "x-vlserve-content-type": variant.content_type,
        "x-vlserve-content-encoding": variant.encoding or None,
    }
    headers = {name: value for name, value in fields.items() if value is not None}
    return WorkerRequest({"body": variant.body}, headers)


def answered(worker: Worker, variant: Variant) -> tuple[int, dict[str, object]]:
    (answer,) = worker.predict([as_handed_over(variant)])
    assert answer.headers["x-vlserve-version"] == "1"
    assert answer.content_type == "application/json"
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.sent)
def test_each_row_is_read_or_refused_as_the_page_says(worker: Worker, variant: Variant) -> None:
    status, answer = answered(worker, variant)
    if variant.outcome == READ:
        plain = next(other for other in VARIANTS if other.text == variant.text)
        assert status == 200, answer
        assert answer["tags"] == answered(worker, plain)[1]["tags"]
        return
    error = answer["error"]
    assert isinstance(error, dict)
    assert error["code"] == variant.code
    assert error["message"].startswith(variant.outcome)
    assert len(error["message"]) < len(variant.outcome) + 60
    assert answer["request_id"] == "torchserves-own"


def test_a_batch_of_all_gives_each_its_own(worker: Worker) -> None:
    """Refused and answered side by side: nobody gets a neighbour's answer."""
    answers = worker.predict([as_handed_over(variant) for variant in VARIANTS])
    for variant, answer in zip(VARIANTS, answers, strict=True):
        assert (answer.status == 200) == (variant.outcome == READ), variant
        if variant.outcome != READ:
            assert json.loads(answer.body)["error"]["code"] == variant.code


def test_the_page_has_these_rows_and_no_others() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("| sent", "| ---"))]
    assert rows == [variant.row for variant in VARIANTS]


NEEDS_TODAYS_RUNTIME = (
    *(
        "base64",
        "a data URI",
        "URL-safe",
        "JSON",
        "NaN",
        "GBK in JSON",
        "more than",
        "a name twice",
    ),
    *("a list", "neither JSON", "all fields in the query", "x-www-form", "charset=UTF-8"),
)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_archives_of_earlier_versions_get_today_s_forms(recording: str, tmp_path: Path) -> None:
    """The worker is today's; what needs today's runtime is left out."""
    project = unpack(recording, tmp_path / "project")
    archive = next(iter(sorted((project / STORE).rglob("*.mar"))))
    unpack_archive(archive, tmp_path / "unpacked")
    variants = [
        variant for variant in VARIANTS if not variant.sent.startswith(NEEDS_TODAYS_RUNTIME)
    ]
    assert len(variants) > len(VARIANTS) / 2
    with running_worker(tmp_path / "unpacked", tmp_path) as worker:
        assert worker.load(tmp_path / "unpacked")[0] == 200
        answers = worker.predict([as_handed_over(variant) for variant in variants])
    for variant, answer in zip(variants, answers, strict=True):
        body = json.loads(answer.body)
        assert (answer.status == 200) == (variant.outcome == READ), (variant, body)
        if variant.outcome != READ:
            assert body["error"]["message"].startswith(variant.outcome)
