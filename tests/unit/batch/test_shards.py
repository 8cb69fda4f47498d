"""Shards of one job: each answers its own parts, beside the others, into the same folder."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.batch_rows import output, rows_of, write_jsonl
from vlserve.batch import locks
from vlserve.batch.locks import Shard, locked
from vlserve.errors import BatchError

Run = Callable[..., Mapping[str, Any]]


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "0/2/3", "a/b"])
def test_a_shard_is_one_of_several(text: str) -> None:
    with pytest.raises(ValueError, match="is not I/N"):
        Shard.parse(text)


def test_every_part_is_of_one_shard() -> None:
    shards = [Shard.parse(f"{index}/3") for index in range(3)]
    assert all(sum(shard.has(part) for shard in shards) == 1 for part in range(20))
    assert Shard().is_whole and all(Shard().has(part) for part in range(5))


def test_shards_together_make_the_whole(covers: Path, run: Run, tmp_path: Path) -> None:
    file, out = write_jsonl(covers / "sharded.jsonl", rows_of(150)), tmp_path / "out"
    first = run(file, shard="1/2")
    assert first["unfinished_parts"] == 2 and not (out / "report.json").exists()
    assert [part.name for part in out.glob("part-*")] == ["part-00001.jsonl"]
    second = run(file, shard="0/2")
    assert (second["unfinished_parts"], second["rows"]) == (0, 150)
    assert [row["row"] for row in output(out)] == list(range(150))
    assert (out / "report.json").exists()
    with pytest.raises(BatchError, match="another number of shards"):
        run(file, shard="0/3")
    assert run(file)["parts_of_earlier_runs"] == 3
    assert run(file, shard="0/3")["rows"] == 150


def test_a_shard_excludes_itself_and_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_FOR_LOCK_S", 0.0)
    with locked(tmp_path, tmp_path, Shard(0, 2)), locked(tmp_path, tmp_path, Shard(1, 2)):
        for other in (Shard(), Shard(0, 2)):
            with (
                pytest.raises(BatchError, match="another job writes"),
                locked(tmp_path, tmp_path, other),
            ):
                pass
    with locked(tmp_path, tmp_path, Shard()):
        pass


def test_a_refused_number_of_shards_leaves_the_job_as_it_was(tmp_path: Path) -> None:
    with locked(tmp_path, tmp_path, Shard(0, 2)):
        pass
    with pytest.raises(BatchError, match="another number"), locked(tmp_path, tmp_path, Shard(0, 3)):
        pass
    with locked(tmp_path, tmp_path, Shard(1, 2)) as descriptors:
        assert len(descriptors) == 2


def test_two_shards_run_at_once(covers: Path, tmp_path: Path) -> None:
    file, out = write_jsonl(covers / "at_once.jsonl", rows_of(500)), tmp_path / "out"
    script = Path(sys.executable).with_name("vlserve")
    command = [str(script), "batch", str(covers / "tagger-1.mar"), "--input", str(file)]
    command += ["--output", str(out), "--workers", "1", "--json"]
    drivers = [
        subprocess.Popen([*command, "--shard", f"{shard}/2"], stdout=subprocess.PIPE)
        for shard in range(2)
    ]
    reports = [json.loads(driver.communicate(timeout=250)[0]) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert [row["row"] for row in output(out)] == list(range(500))
    assert min(report["unfinished_parts"] for report in reports) == 0
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["rows"] == 500
