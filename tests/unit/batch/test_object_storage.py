"""Jobs over a storage of objects: moto's server stands in for S3, on loopback."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from support.batch_rows import CRASH, rows_of
from support.object_storage import object_storage
from vlserve.batch.job import JobFolder
from vlserve.batch.join import join_parts
from vlserve.batch.run import KILLED
from vlserve.batch.sources import changed, find_sources
from vlserve.errors import BatchError, DataError
from vlserve_worker.storage import ObjectPath, path_of, write_whole

Run = Callable[..., Mapping[str, Any]]


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """What follows a path's ``?``, of a storage with a bucket ``covers``."""
    with object_storage("covers") as query:
        yield query


@pytest.fixture
def bucket(storage: str, covers: Path, request: pytest.FixtureRequest) -> ObjectPath:
    """A prefix of this test's own, with the covers' images."""
    prefix = path_of(f"s3://covers/{request.node.name}?{storage}")
    assert isinstance(prefix, ObjectPath)
    for image in covers.glob("cover*.jpg"):
        write_whole(prefix / image.name, image.read_bytes())
    return prefix


def put_jsonl(file: Any, rows: list[dict[str, Any]]) -> Any:
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return file


def output(out: Any) -> list[dict[str, Any]]:
    parts = sorted(out.glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]


def test_objects_are_answered_as_files_are(
    bucket: ObjectPath, covers: Path, run: Run, tmp_path: Path
) -> None:
    rows = rows_of(40)
    images = [
        {"id": row["id"], "image": (covers / row["img"]).read_bytes(), "text": row["text"]}
        for row in rows
    ]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(images), table, row_group_size=15)
    write_whole(bucket / "in" / "a.parquet", table.getvalue())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as shard:
        for row in images:
            for ending, content in (("jpg", row["image"]), ("txt", row["text"].encode())):
                member = tarfile.TarInfo(f"{row['id']}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    write_whole(bucket / "in" / "a.tar", archive.getvalue())
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_whole(bucket / "a.jsonl.gz", gzip.compress(lines))
    for row in images:
        write_whole(bucket / "folder" / f"{row['id']}.jpg", row["image"])
        write_whole(bucket / "folder" / f"{row['id']}.txt", row["text"].encode())
    names = ("in/*.parquet", "in/a.tar", "a.jsonl.gz", "folder")
    answers = {}
    for number, name in enumerate(names):
        out = bucket / f"out{number}"
        report = run(bucket / name, out=out)
        assert (report["rows"], report["errors"]) == (40, {}), output(out)[0]
        assert json.loads((out / "report.json").read_bytes()) == report
        answers[name] = {row["id"]: row["tags"] for row in output(out)}
    assert answers == dict.fromkeys(names, answers["folder"])
    join_parts(bucket / "out0", "jsonl", tmp_path / "joined.jsonl")
    assert len((tmp_path / "joined.jsonl").read_bytes().splitlines()) == 40


@pytest.mark.long
def test_a_part_is_its_own_receipt(bucket: ObjectPath, run: Run) -> None:
    file = put_jsonl(bucket / "in.jsonl", rows_of(100))
    out = bucket / "out"
    run(file, out=out)
    before = {part.name: part.stat() for part in out.glob("part-*")}
    (out / "part-00001.jsonl").unlink()
    write_whole(out / "part-all.jsonl", b"")  # of somebody, as --joined
    assert set(JobFolder(out).receipts()) == {0, 2}
    (out / "part-all.jsonl").unlink()
    report = run(file, out=out)
    assert (report["parts_of_earlier_runs"], report["rows"]) == (2, 100)
    after = {part.name: part.stat() for part in out.glob("part-*")}
    assert [row["row"] for row in output(out)] == list(range(100))
    assert {name for name in before if after[name] != before[name]} <= {"part-00001.jsonl"}
    with pytest.raises(BatchError, match="holds another job: with another --keep"):
        run(file, out=out, keep=("views",))
    put_jsonl(file, rows_of(101))
    with pytest.raises(BatchError, match="has changed since the job began"):
        run(file, out=out)


def test_a_row_that_kills_its_worker_is_found_there_too(bucket: ObjectPath, run: Run) -> None:
    file = put_jsonl(bucket / "in.jsonl", rows_of(20, row5={"text": CRASH}))
    run(file, out=bucket / "out")
    results = output(bucket / "out")
    assert {row["row"]: row["error_code"] for row in results if "error_code" in row} == {5: KILLED}
    assert [row["row"] for row in results] == list(range(20))
    assert not list((bucket / "out" / ".vlserve" / "careful").glob("**/*"))


def test_a_prefix_whose_objects_are_others_has_changed(bucket: ObjectPath) -> None:
    before = find_sources([str(bucket)])
    write_whole(bucket / "out" / ".vlserve" / "job.json", b"{}")  # of a job that writes below
    write_whole(bucket / "out" / "report.json", b"{}")
    assert list(changed(before, find_sources([str(bucket)]))) == []
    write_whole(bucket / "cover00.jpg", b"more")
    now = find_sources([str(bucket)])
    assert list(changed(before, now)) == [f"{bucket} has changed since the job began"]


@pytest.mark.long
def test_rows_that_failed_run_again(bucket: ObjectPath, run: Run) -> None:
    file = put_jsonl(bucket / "in.jsonl", rows_of(12, row3={"img": "later.jpg"}))
    out = bucket / "out"
    assert run(file, out=out, format="parquet")["errors"] == {"image_unreadable": 1}
    write_whole(bucket / "later.jpg", (bucket / "cover0.jpg").read_bytes())
    assert run(file, out=out, format="parquet", retry_errors=True)["failed"] == 0


def test_what_cannot_be_read_is_said(storage: str, bucket: ObjectPath, run: Run) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl.*no such object"):
        find_sources([str(bucket / "absent.jsonl")])
    with pytest.raises(DataError, match=r"absent\*.*no such object"):
        find_sources([str(bucket / "absent*.jsonl")])
    with pytest.raises(DataError, match="credentials belong into the environment"):
        find_sources(["s3://key:secret@covers/in.jsonl"])
    file = put_jsonl(bucket / "in.jsonl", rows_of(3))
    nowhere = path_of(f"s3://no-such-bucket/out?{storage}")
    with pytest.raises(BatchError, match="no-such-bucket"):
        run(file, out=nowhere)
