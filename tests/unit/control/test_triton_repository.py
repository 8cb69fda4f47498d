"""What Triton reads of a version, and what is read of what it says."""

from pathlib import Path

import httpx
import pytest

from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.control.engine.triton_grpc import failure_reason
from vlserve.control.engine.triton_instance import _answer_of, write_tokens
from vlserve.control.engine.triton_repository import TritonRepository, key_of
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.errors import ArchiveError
from vlserve.runtime.manifest import MANIFEST
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings


@pytest.fixture
def endpoint(settings: Settings) -> Endpoint:
    endpoint = endpoints(settings)[0]
    endpoint.store.mkdir(parents=True)
    return endpoint


def test_a_version_is_written_and_taken_away(endpoint: Endpoint, tmp_path: Path) -> None:
    repository = TritonRepository(endpoint)
    archive = pack_echo(tmp_path, "tagger", 3)
    settings = EngineSettings(workers=5, batch_size=4, queue_size=7, threads=2)
    repository.write("tagger", 3, archive, settings)
    folder = endpoint.folder / "repository" / "tagger-3"
    configuration = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "tagger-3"\n' in configuration
    assert "max_batch_size: 4\n" in configuration
    assert configuration.count("count: 1 ") == 5
    assert "max_queue_delay_microseconds: 0 " in configuration
    assert "max_queue_size: 7 " in configuration
    assert f'key: "archive_dir" value {{ string_value: "{endpoint.store / "tagger-3"}"' in (
        configuration
    )
    assert repository.code_folder("tagger", 3) == folder / "1"
    assert sorted(file.name for file in (folder / "1").iterdir()) == ["__pycache__", "model.py"]
    assert (endpoint.store / "tagger-3" / MANIFEST).is_file()

    version = repository.read("tagger", 3)
    assert version is not None and (version.workers, version.numbers) == (5, (1, 2, 3, 4, 5))

    repository.remove("tagger", 3)
    assert repository.read("tagger", 3) is None
    assert not folder.exists()
    assert list(endpoint.store.iterdir()) == []
    repository.remove("tagger", 3)  # what is away already is no error


def test_a_worker_in_the_place_of_another_changes_groups_alone(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """Triton takes that in place; and a group like an earlier one would be that one to it."""
    repository = TritonRepository(endpoint)
    repository.write("tagger", 3, pack_echo(tmp_path, "tagger", 3), EngineSettings(workers=3))
    file = endpoint.folder / "repository" / "tagger-3" / "config.pbtxt"
    before = file.read_text(encoding="utf-8").splitlines()
    for survivors, numbers in (([1, 2], (1, 2, 4)), ([1, 2], (1, 2, 5)), ([], (6, 7, 8))):
        version = repository.read("tagger", 3)
        assert version is not None
        repository.put("tagger", 3, version.with_numbers(survivors).filled_up())
        after = file.read_text(encoding="utf-8").splitlines()
        groups = [line for line in after if line.startswith("instance_group")]
        assert [line for line in after if line not in groups] == [
            line for line in before if not line.startswith("instance_group")
        ]
        assert len({line.partition("priority")[2] for line in groups}) == 3
        new_version = repository.read("tagger", 3)
        assert new_version is not None and new_version.numbers == numbers


def test_a_folder_with_quotes_is_written_as_text(settings: Settings, tmp_path: Path) -> None:
    here = settings.model_copy(update={"state_dir": tmp_path / 'quoted "状态" \\'})
    endpoint = endpoints(here)[0]
    endpoint.store.mkdir(parents=True)
    TritonRepository(endpoint).write(
        "tagger", 1, pack_echo(tmp_path, "tagger", 1), EngineSettings()
    )
    text = (endpoint.folder / "repository/tagger-1/config.pbtxt").read_text(encoding="utf-8")
    assert 'quoted \\"状态\\" \\\\/' in text


def test_a_file_that_is_no_archive_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "tagger-1.mar"
    file.write_bytes(b"no zip")
    with pytest.raises(ArchiveError):
        TritonRepository(endpoint).write("tagger", 1, file, EngineSettings())


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tagger-3", ("tagger", 3)),
        ("two-words-12", ("two-words", 12)),
        ("tagger", None),
        ("tagger-x", None),
        ("-3", None),
    ],
)
def test_the_name_of_a_model_is_read_back(name: str, key: tuple[str, int] | None) -> None:
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (
            "load failed for model 'm-1': version 1 is at UNAVAILABLE state: Internal: "
            "ValueError: the label file is empty\n\nAt:\n  /x/handler.py(3): initialize\n;\n",
            "ValueError: the label file is empty",
        ),
        (
            "load failed for model 'm-1': version 1 is at UNAVAILABLE state: Internal: "
            "Stub process 'm-1_0_0' is not healthy.;\n",
            "Stub process 'm-1_0_0' is not healthy.",
        ),
        (
            "load failed for model 'm-1': version 1 is at UNAVAILABLE state: Internal: "
            "ArchiveUnreadable: 1 error\nanswer_shift\n  no integer\n\nAt:\n  /x/y.py(3): f\n;\n",
            "ArchiveUnreadable: 1 error",
        ),
        ("", ""),
    ],
)
def test_a_failed_load_says_its_exception_alone(details: str, reason: str) -> None:
    assert failure_reason(details) == reason


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (
            httpx.Response(
                200,
                content=b'{"outputs":[]}' + b'422 decode;dur=1.5\n{"error": {}}',
                headers={"Inference-Header-Content-Length": "14"},
            ),
            422,
            b'{"error": {}}',
        ),
        (httpx.Response(503, content=b"queue is full"), 503, b"queue is full"),
        (
            httpx.Response(
                200, content=b"{}garbage", headers={"Inference-Header-Content-Length": "2"}
            ),
            502,
            b"",
        ),
    ],
    ids=["the worker's", "Triton's", "neither"],
)
def test_an_answer_is_cut_out_of_tritons(
    response: httpx.Response, status: int, body: bytes
) -> None:
    answer = _answer_of(response)
    assert (answer.status, answer.body) == (status, body)


def test_tokens_are_new_at_each_start_and_the_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    first = write_tokens(file)
    assert file.stat().st_mode & 0o777 == 0o600
    second = write_tokens(file)
    assert len({*first.values(), *second.values()}) == 4
