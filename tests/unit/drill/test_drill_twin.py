"""Twins answer the archive's probes, and do to other requests what their fault says."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.lifecycle.probes import differences
from vlserve.drill.twin import Fault, Original, spoil, twin_name
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.errors import ArchiveError
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import BatchResult, ItemError, Request


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("original")
    return Original(pack_echo(folder, "tagger", 4), folder / "unpacked")


def others(original: Original, count: int = 100) -> list[Mapping[str, Any]]:
    return [json.loads(post.body) for post in vary_probes(original.archive, count)]


def opened(original: Original, folder: Path, fault: Fault) -> Pipeline:
    archive = original.pack_twin(folder, 7, fault)
    unpack_archive(archive, folder / "twin")
    return open_folder(folder / "twin")


def run(pipeline: Pipeline, requests: list[Mapping[str, Any]]) -> BatchResult:
    return pipeline.run([Request(fields) for fields in requests])


FAULTS = [
    Fault(),
    Fault("slow", delay_ms=20.0),
    Fault("fails"),
    Fault("differs"),
    Fault("crashes"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_every_twin_is_an_archive_of_its_own_that_answers_its_probes(
    original: Original, tmp_path: Path, fault: Fault
) -> None:
    pipeline = opened(original, tmp_path, fault)
    assert (pipeline.manifest.model, pipeline.manifest.version) == ("tagger-drill", 7)
    pipeline.warm_up(8)
    probes = pipeline.manifest.probes
    assert probes
    for probe, answer in zip(
        probes, run(pipeline, [probe.fields for probe in probes]).answers, strict=True
    ):
        assert not isinstance(answer, ItemError)
        assert differences(probe.answer, answer) == []


def test_a_good_twin_answers_as_the_original(original: Original, tmp_path: Path) -> None:
    unpack_archive(original.archive, tmp_path / "original")
    expected = run(open_folder(tmp_path / "original"), others(original)).answers
    assert run(opened(original, tmp_path, Fault()), others(original)).answers == expected


def test_a_twin_that_differs_has_another_first_tag(original: Original, tmp_path: Path) -> None:
    good = run(opened(original, tmp_path / "good", Fault()), others(original)).answers
    other = run(opened(original, tmp_path / "other", Fault("differs")), others(original)).answers
    pairs = zip(good, other, strict=True)
    assert all(a["tags"][0]["tag"] != b["tags"][0]["tag"] for a, b in pairs)  # type: ignore[index]


def test_a_slow_twin_is_slow(original: Original, tmp_path: Path) -> None:
    pipeline = opened(original, tmp_path, Fault("slow", delay_ms=30.0))
    assert run(pipeline, others(original, 3)).stage_ms["decode"] > 90
    probe = pipeline.manifest.probes[0].fields
    assert run(pipeline, [probe] * 3).stage_ms["decode"] < 90


def test_a_failing_twin_fails_its_share(original: Original, tmp_path: Path) -> None:
    answers = run(
        opened(original, tmp_path, Fault("fails", share=0.5)), others(original, 200)
    ).answers
    failures = sum(isinstance(answer, ItemError) for answer in answers)
    assert 60 <= failures <= 140


def test_a_crashing_twin_kills_its_process(original: Original, tmp_path: Path) -> None:
    opened(original, tmp_path, Fault("crashes"))
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from vlserve.runtime.types import Request\n"
        "from vlserve.runtime.folder import open_folder\n"
        "open_folder(Path(sys.argv[1])).run([Request(json.loads(sys.argv[2]))])\n"
    )
    body = json.dumps(others(original, 1)[0])
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "twin", body], check=False)
    assert result.returncode == 70


def test_a_spoilt_twin_is_refused(original: Original, tmp_path: Path) -> None:
    archive = original.pack_twin(tmp_path, 7, Fault())
    verify_archive(archive)
    spoil(archive)
    with pytest.raises(ArchiveError):
        verify_archive(archive)


def test_the_name_of_a_twin_is_a_model_name() -> None:
    assert twin_name("tagger") == "tagger-drill"
    assert len(twin_name("m" * 63)) == 63
