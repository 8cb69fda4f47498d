"""Archives and tuning files of earlier states of the code are read with today's."""

import json
import zipfile
from pathlib import Path

import pytest

from support.recorded import STORE, tuning_file
from vlserve.control.tuning import Serving, parse_tuning
from vlserve.exporter.pack import draft_of, pack_members
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.manifest import MANIFEST

ARCHIVES = ("tagger/1/tagger-1", "tagger/2/tagger-2", "banner/1/banner-1", "banner/2/banner-2")


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_verified_and_its_answers_are_logged(project: Path, name: str) -> None:
    manifest = verify_archive(project / STORE / f"{name}.mar")
    assert f"{manifest.model}-{manifest.version}" == name.rpartition("/")[2]
    assert manifest.can("answer_log")
    assert not manifest.can("no such capability")


def test_an_archive_packed_anew_says_what_its_own_runtime_reads(
    project: Path, tmp_path: Path
) -> None:
    archive, folder = project / STORE / f"{ARCHIVES[0]}.mar", tmp_path / "unpacked"
    manifest = unpack_archive(archive, folder)
    members = {name: folder / name for name in manifest.files}
    again = pack_members(tmp_path / "out", draft_of(manifest) | {"version": 7}, members)
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(again) as new:
        before, after = json.loads(old.read(MANIFEST)), json.loads(new.read(MANIFEST))
    assert after.keys() == before.keys()
    assert after["text"].keys() == before["text"].keys()
    assert verify_archive(again).can("answer_log")


def test_a_tuning_file_is_read(recording: str) -> None:
    file = tuning_file(recording)
    tuning = parse_tuning(file.read_bytes(), file.name)
    assert tuning.serving == Serving(workers=1, threads=2, batch_size=4, max_batch_delay_ms=2)
    assert json.loads(file.read_bytes()).keys() <= tuning.model_dump(by_alias=True).keys()
