"""The archive without weights that other tests stand on."""

import subprocess
import sys
from pathlib import Path

from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.exporter.probes import answer_by_archive, drawn_requests
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import ItemError, Request


def test_it_verifies_and_answers_its_probes(tmp_path: Path) -> None:
    path = pack_echo(tmp_path, "tagger", 4)
    manifest = verify_archive(path)
    assert (path.name, manifest.model, manifest.version) == ("tagger-4.mar", "tagger", 4)
    assert len(manifest.probes) == 3
    answers = answer_by_archive(path, [probe.fields for probe in manifest.probes])
    assert answers == [probe.answer for probe in manifest.probes]
    assert answers[0] != answers[1]


def test_versions_differ_by_their_shift_alone(tmp_path: Path) -> None:
    first, second = pack_echo(tmp_path, "m", 1), pack_echo(tmp_path, "m", 2, answer_shift=1)
    first_probe, second_probe = verify_archive(first).probes[0], verify_archive(second).probes[0]
    assert first_probe.fields == second_probe.fields
    assert first_probe.answer["tags"] != second_probe.answer["tags"]


def test_a_fault_is_in_the_graph_and_not_in_the_expected_answers(tmp_path: Path) -> None:
    healthy = verify_archive(pack_echo(tmp_path / "a", "m", 1))
    path = pack_echo(tmp_path / "b", "m", 1, fail_on_id=VOCABULARY["坏"])
    faulty = unpack_archive(path, tmp_path / "unpacked")
    assert faulty.probes == healthy.probes
    fields = drawn_requests(faulty.model_dump())[0]
    requests = [Request(fields), Request(fields | {"text": "坏"})]
    good, bad = open_folder(tmp_path / "unpacked").run(requests).answers
    assert good == faulty.probes[0].answer
    assert isinstance(bad, ItemError)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vlserve.exporter.echo import pack_echo;"
        f"pack_echo(Path({str(tmp_path)!r}), 'm', 1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "m-1.mar").is_file()
