"""The files in loadtest/ as people run them: with Locust, by hand."""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.answering_server import Behaviour, serve
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.release_traffic import ReleaseTraffic, running_traffic
from vlserve.loadgen.request_record import RequestRecord, read_records

pytestmark = pytest.mark.server

LOADTEST = Path(__file__).parents[3] / "loadtest"


def by_hand(
    file: str, url: str, folder: Path, options: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOADTEST / file), "--host", url]
    common = ["--headless", "--only-summary", "--model", "tagger", "--record", "requests.jsonl"]
    return subprocess.run(
        [*command, *common, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
    )


def dataset(folder: Path) -> Path:
    (folder / "a.jpg").write_bytes(b"\xff\xd8")
    file = folder / "data.jsonl"
    file.write_text('{"id": "1", "img": "a.jpg", "text": "x"}\n', encoding="utf-8")
    return file


@pytest.mark.parametrize("source", ["--data", "--archive"])
def test_two_processes_share_the_users_and_the_record(source: str, tmp_path: Path) -> None:
    behaviour = Behaviour(delay_s=0.02)
    options = ["--processes", "2", "--users", "4", "--spawn-rate", "4", "--run-time", "3s"]
    (tmp_path / "requests.jsonl").write_text("an earlier run's\n", encoding="utf-8")
    file = dataset(tmp_path) if source == "--data" else pack_echo(tmp_path, "tagger", 1)
    with serve(behaviour) as url:
        result = by_hand("locustfile.py", url, tmp_path, [*options, source, str(file)])
    assert result.returncode == 0, result.stderr
    records = read_records(tmp_path / "requests.jsonl")
    assert len(behaviour.connections) == 4
    # Without --stop-timeout a request of each user may be cut off at the end.
    assert 20 < len(records) <= behaviour.seen <= len(records) + 4


def test_two_processes_share_the_rate(tmp_path: Path) -> None:
    behaviour = Behaviour(delay_s=0.01)
    options = ["--processes", "2", "--rate", "60", "--run-time", "8s", "--stop-timeout", "5"]
    with serve(behaviour) as url:
        data = ["--data", str(dataset(tmp_path))]
        result = by_hand("locustfile.py", url, tmp_path, [*options, *data])
    assert result.returncode == 0, result.stderr
    records = read_records(tmp_path / "requests.jsonl")
    assert len(behaviour.connections) >= 2
    assert len(records) == behaviour.seen
    assert 400 < len(records) <= 482


def test_a_run_that_sends_less_than_half_of_its_rate_has_failed(tmp_path: Path) -> None:
    with serve(Behaviour()) as url:
        options = ["--rate", "20000", "--run-time", "2s", "--data", str(dataset(tmp_path))]
        result = by_hand("locustfile.py", url, tmp_path, options)
    assert result.returncode == 1
    assert "of the 40000 that --rate asks for" in result.stderr


def test_requests_that_the_end_of_a_run_cuts_off_have_not_failed(tmp_path: Path) -> None:
    behaviour = Behaviour(stall_from_s=1.0, stall_s=30)
    with serve(behaviour) as url:
        options = ["--users", "2", "--spawn-rate", "2", "--run-time", "3s"]
        result = by_hand("locustfile.py", url, tmp_path, options)
    records = read_records(tmp_path / "requests.jsonl")
    assert result.returncode == 0, result.stderr
    assert behaviour.seen == len(records) + 2
    assert {record.failure for record in records} == {None}


def test_a_run_without_an_answer_has_failed(tmp_path: Path) -> None:
    with serve(Behaviour(delay_s=30)) as url:
        result = by_hand("locustfile.py", url, tmp_path, ["--users", "1", "--run-time", "2s"])
    assert result.returncode == 1
    assert "no request was answered" in result.stderr


def test_release_traffic_is_of_three_kinds_and_open(tmp_path: Path) -> None:
    behaviour = Behaviour(version=2, delay_s=0.01)
    with serve(behaviour) as url:
        traffic = ReleaseTraffic(
            url=url,
            model="tagger",
            data=dataset(tmp_path),
            rate_per_s=100.0,
            sticky_share=0.5,
            sticky_keys=5,
            versions=(1, 2),
            version_share=0.2,
        )
        with running_traffic(traffic, tmp_path / "out") as locust:
            while len(locust.records()) < 200:
                locust.wait(0.1)
            records = locust.finish()

    assert len(records) == behaviour.seen
    sticky_requests = [record for record in records if record.sticky_key is not None]
    version_requests = [record for record in records if record.requested_version is not None]
    assert len({record.sticky_key for record in sticky_requests}) == 5
    assert behaviour.sticky == len(sticky_requests)
    assert 0.3 < len(sticky_requests) / len(records) < 0.7
    assert 0.08 < len(version_requests) / len(records) < 0.35
    assert not any(record.sticky_key for record in version_requests)
    failures = {record.requested_version: record.failure for record in records}
    assert failures == {None: None, 1: "wrong version", 2: None}
    due_times = [record.due_s for record in sorted(records, key=due)]
    assert all(0.009 < later - due_s < 0.011 for due_s, later in itertools.pairwise(due_times))
    assert "with a sticky key by version 2" in locust.report.read_text(encoding="utf-8")


def due(record: RequestRecord) -> float:
    return record.due_s
