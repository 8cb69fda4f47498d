"""Shards of one job: each answers its own parts, beside the others, into the same folder."""

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
