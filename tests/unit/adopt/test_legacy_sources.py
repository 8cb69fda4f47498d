"""What is read of an archive and of the server that served it: forms, numbers, requests."""

import shutil
import tarfile
from pathlib import Path

import pytest

from support import legacy_archives as made
from vlserve.adopt.adoption import Wishes, described
from vlserve.adopt.legacy_archive import open_legacy
from vlserve.adopt.requests import read_calls
from vlserve.errors import NotAdopted
from vlserve.runtime.exchange import ExchangeFields
from vlserve.runtime.legacy_request import legacy_request
from vlserve.runtime.manifest import Adopted


def _described(archive: Path, wishes: Wishes | None = None) -> tuple[Adopted, tuple[str, ...]]:
    legacy = open_legacy(archive, archive.parent / "unpacked")
    return described(legacy, wishes or Wishes())


def _with_config(folder: Path, text: str) -> Path:
    return made.write_legacy(
        folder / "m.mar", "first.py", made.FIRST_ALONE, {"c.yaml": text}, configFile="c.yaml"
    )


def test_an_archive_a_folder_and_a_tgz_hold_the_same(tmp_path: Path) -> None:
    archive = made.write_legacy(
        tmp_path / "m.mar", "first.py", made.FIRST_ALONE, {"deep/er/file.txt": "x"}
    )
    legacy = open_legacy(archive, tmp_path / "of-mar")
    shutil.copytree(tmp_path / "of-mar", tmp_path / "folder")
    (tmp_path / "folder" / "__pycache__").mkdir()
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as tar:
        tar.add(tmp_path / "of-mar", "root")

    others = [
        open_legacy(tmp_path / "folder", tmp_path / "of-folder"),
        open_legacy(tmp_path / "m.tgz", tmp_path / "of-tgz"),
    ]

    names = [legacy.name_of(file) for file in legacy.files()]
    assert names == ["MAR-INF/MANIFEST.json", "deep/er/file.txt", "first.py"]
    for other in others:
        assert [other.name_of(file) for file in other.files()] == names
        assert other.manifest == legacy.manifest


def test_without_a_manifest_the_file_names_the_model(tmp_path: Path) -> None:
    archive = made.write_members(tmp_path / "BERT.mar", {"first.py": made.FIRST_ALONE})

    adoption, _ = _described(archive, Wishes(handler="first.py"))

    assert (adoption.name, adoption.version, adoption.handler) == ("BERT", "1.0", "first.py")


def test_one_request_at_a_time_unless_something_says_more(tmp_path: Path) -> None:
    archive = made.write_legacy(tmp_path / "m.mar", "first.py", made.FIRST_ALONE)

    adoption, _ = _described(archive)

    assert (adoption.batch_size, adoption.max_batch_delay_ms, adoption.workers) == (1, 100, None)


@pytest.mark.parametrize(
    ("batch_size", "server", "expected"),
    [(None, "", 4), (None, '{"Words": {"1.0": {"batchSize": 3}}}', 3), (2, "", 2)],
)
def test_the_command_line_comes_before_the_server_and_that_before_the_archive(
    tmp_path: Path, batch_size: int | None, server: str, expected: int
) -> None:
    archive = _with_config(tmp_path, "batchSize: 4\nmaxBatchDelay: 20\nminWorkers: 3\n")
    config = tmp_path / "config.properties"
    config.write_text(f"# ours\nmodels={server}\nservice_envelope=json\n", encoding="utf-8")

    adoption, _ = _described(
        archive, Wishes(batch_size=batch_size, server_settings=config if server else None)
    )

    assert (adoption.batch_size, adoption.max_batch_delay_ms, adoption.workers) == (expected, 20, 3)
    assert adoption.envelope == ("json" if server else None)


def test_an_entry_over_several_lines_is_one(tmp_path: Path) -> None:
    archive = made.write_legacy(tmp_path / "m.mar", "first.py", made.FIRST_ALONE)
    config = tmp_path / "config.properties"
    config.write_text(
        'models={\\\n  "Words": {\\\n    "1.0": {"batchSize": 5, "responseTimeout": 7}\\\n  }}\n'
        "decode_input_request=false\n",
        encoding="utf-8",
    )

    adoption, _ = _described(archive, Wishes(server_settings=config))

    assert (adoption.batch_size, adoption.response_timeout_s, adoption.decodes) == (5, 7, False)


def test_an_entry_that_torchserve_passes_over_is_told(tmp_path: Path) -> None:
    adoption, warnings = _described(_with_config(tmp_path, "BatchSize: 4\n"))

    assert adoption.batch_size == 1
    assert [words for words in warnings if "BatchSize" in words and "batchSize" in words]


def test_how_long_it_may_start_is_taken_and_its_queue_is_named(tmp_path: Path) -> None:
    adoption, warnings = _described(
        _with_config(tmp_path, "startupTimeout: 300\njobQueueSize: 50\n")
    )

    assert adoption.startup_timeout_s == 300
    assert warnings == (
        "m.mar: jobQueueSize 50 is not taken: engine.queue_size is the length of every version's "
        "queue",
    )


@pytest.mark.parametrize(
    ("source", "describes"), [(made.DESCRIBES, True), (made.BASE_HANDLER, False)]
)
def test_a_handler_with_a_description_of_its_own_is_known(
    tmp_path: Path, source: str, describes: bool
) -> None:
    adoption, _ = _described(made.write_legacy(tmp_path / "m.mar", "own.py", source))

    assert adoption.describes == describes


def test_an_envelope_of_the_manifest_is_passed_over_as_by_torchserve(tmp_path: Path) -> None:
    archive = made.write_legacy(tmp_path / "m.mar", "first.py", made.FIRST_ALONE, envelope="json")

    adoption, warnings = _described(archive)

    assert adoption.envelope is None
    assert warnings == (
        "m.mar: TorchServe passes over the envelope json in its manifest: --envelope takes it",
    )


def test_an_envelope_that_reads_one_request_gets_one(tmp_path: Path) -> None:
    archive = made.write_legacy(tmp_path / "m.mar", "first.py", made.FIRST_ALONE)

    adoption, warnings = _described(archive, Wishes(envelope="kserve", batch_size=4))

    assert adoption.batch_size == 1
    assert "envelope kserve reads one request of a batch" in warnings[0]


def test_what_is_outside_of_the_archive_is_told(tmp_path: Path) -> None:
    source = (
        "from transformers import AutoModel\n"
        "def handle(data, context):\n"
        "    open('/home/me/labels.txt')\n"
        "    AutoModel.from_pretrained('bert-base-uncased')\n"
    )

    _, warnings = _described(made.write_legacy(tmp_path / "m.mar", "h.py", source))

    assert warnings == (
        "m.mar: h.py opens /home/me/labels.txt (line 3), which is not in the archive",
        "m.mar: h.py fetches bert-base-uncased (line 4), which is not in the archive: workers may "
        "have no network",
    )


def test_a_folder_of_python_files_is_the_archives_own_package(tmp_path: Path) -> None:
    source = (
        "from helpers import words\n"
        "import helpers.deep.numbers\n"
        "def handle(data, context):\n    return data\n"
    )
    helpers = {"helpers/words.py": "open('/home/me/words.txt')\n", "helpers/deep/numbers.py": ""}

    _, warnings = _described(made.write_legacy(tmp_path / "m.mar", "h.py", source, helpers))

    assert warnings == (
        "m.mar: helpers/words.py opens /home/me/words.txt (line 1), which is not in the archive",
    )


def test_a_python_handler_may_be_called_like_a_library(tmp_path: Path) -> None:
    archive = made.write_legacy(tmp_path / "m.mar", "library:run", made.ENTRY_FUNCTION)

    adoption, _ = _described(archive)

    assert adoption.handler == "library:run"


def test_a_folder_of_requests_is_one_a_file_and_a_form_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8")
    (tmp_path / "b.bin").write_bytes(b"\x00")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "img1.png").write_bytes(made.picture())
    (tmp_path / "c" / "text.txt").write_text("words", encoding="utf-8")

    calls = read_calls(tmp_path)

    inputs = [
        legacy_request(ExchangeFields.model_validate(call.fields("/predictions/m")), True, "").data
        for call in calls
    ]
    assert inputs == [
        {"body": {"a": 1}},
        {"body": bytearray(b"\x00")},
        {"img1": bytearray(made.picture()), "text": "words"},
    ]


def test_no_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAdopted, match="holds 0 requests"):
        read_calls(tmp_path)
