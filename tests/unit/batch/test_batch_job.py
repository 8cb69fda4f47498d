"""Jobs by real workers over an Echo tagger: one output row for each input row, whatever happens."""

import fcntl
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest

from support.batch_rows import CRASH, output, rows_of, write_jsonl
from vlserve.batch.join import join_parts
from vlserve.batch.offline import answer_offline
from vlserve.batch.run import KILLED, TIMED_OUT
from vlserve.control.batch_jobs import look_at
from vlserve.errors import BatchError
from vlserve.exporter.echo import pack_echo

Run = Callable[..., Mapping[str, Any]]


def expected(archive: Path, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the archive's own code answers, one row at a time."""
    items = [
        {"id": row["id"], "fields": {"image_path": str(folder / row["img"]), "text": row["text"]}}
        for row in rows
    ]
    return [line["answer"] for line in answer_offline(archive, items, batch_size=1)]


def parquet(file: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file


def test_each_row_gets_the_answer_of_the_archives_own_code(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    rows = rows_of(150)
    report = run(write_jsonl(covers / "in.jsonl", rows), keep=("views",), workers=2)
    results = output(tmp_path / "out")
    assert [(row["id"], row["row"], row["views"]) for row in results] == [
        (f"v{n}", n, n) for n in range(150)
    ]
    answers = expected(covers / "tagger-1.mar", rows, covers)
    for row, answer in zip(results, answers, strict=True):
        assert [tag["tag"] for tag in row["tags"]] == [tag["tag"] for tag in answer["tags"]]
        for tag, other in zip(row["tags"], answer["tags"], strict=True):
            assert tag["score"] == pytest.approx(other["score"], abs=1e-6)
    assert (report["rows"], report["failed"], report["parts"]) == (150, 0, 3)
    assert sum(report["labels"].values()) == 150
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
    view = look_at(tmp_path / "out", time.time())
    assert (view.state, view.rows, view.parts) == ("finished", 150, 3)


def test_every_kind_of_input_gives_the_same_answers(covers: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(40)
    images = [{**row, "image": (covers / row.pop("img")).read_bytes()} for row in rows_of(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (covers / "in.jsonl.gz").write_bytes(gzip.compress(lines))
    with pyarrow.CompressedOutputStream(str(covers / "in.jsonl.zst"), "zstd") as file:
        file.write(lines)
    titles = "".join(f'{row["id"]},{row["img"]},"{row["text"]}"\n' for row in rows)
    (covers / "in.csv").write_text("name,cover,title\n" + titles, encoding="utf-8")
    with tarfile.open(covers / "in.tar", "w") as shard:
        for row in images:
            for ending, content in (("jpg", row["image"]), ("txt", row["text"].encode())):
                member = tarfile.TarInfo(f"{row['id']}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    folder = tmp_path / "unpacked"
    for row in images:
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / "sub" / f"{row['id']}.jpg").write_bytes(row["image"])
        (folder / "sub" / f"{row['id']}.txt").write_text(row["text"], encoding="utf-8")
    columns = {"image_path": "cover", "text": "title"}
    inputs: dict[str, tuple[Path, dict[str, Any]]] = {
        "jsonl": (write_jsonl(covers / "in.jsonl", rows), {}),
        "gzip": (covers / "in.jsonl.gz", {}),
        "zstd": (covers / "in.jsonl.zst", {}),
        "csv": (covers / "in.csv", {"id": "name", "columns": columns}),
        "parquet": (parquet(covers / "in.parquet", images), {}),
        "groups": (parquet(covers / "groups.parquet", images, row_group_size=7), {}),
        "tar": (covers / "in.tar", {}),
        "folder": (folder, {}),
    }
    answers: dict[str, dict[str, Any]] = {}
    for name, (file, options) in inputs.items():
        run(file, out=tmp_path / name, **options)
        answers[name] = {Path(r["id"]).name: r["tags"] for r in output(tmp_path / name)}
    assert answers == dict.fromkeys(inputs, answers["jsonl"])
    assert len(answers["jsonl"]) == 40


def test_a_bad_row_has_an_error_of_its_own(covers: Path, run: Run, tmp_path: Path) -> None:
    (covers / "corrupt.jpg").write_bytes(b"\xff\xd8 no image")
    rows = rows_of(
        12,
        row1={"img": "corrupt.jpg"},
        row2={"img": "absent.jpg"},
        row3={"img": 3},
        row4={"text": None},
        row5={"text": 7},
        row6={"img": "."},
    )
    file = write_jsonl(covers / "bad.jsonl", rows)
    with file.open("a", encoding="utf-8") as more:
        more.write('[1]\n{"id": 12\n\n{"id": 14, "img": "cover0.jpg", "text": "a"}\n')
        more.write('{"files": ["a.jpg"]}\n{"columns": "x"}\n')
    report = run(file)
    results = output(tmp_path / "out")
    assert [row["row"] for row in results] == list(range(17))
    codes = {row["row"]: row["error_code"] for row in results if "error_code" in row}
    assert codes == {
        1: "image_unreadable",
        2: "image_unreadable",
        3: "body_unreadable",
        4: "field_invalid",
        5: "field_invalid",
        6: "image_unreadable",
        12: "body_unreadable",
        13: "body_unreadable",
        15: "field_invalid",
        16: "field_invalid",
    }
    assert all(row["error_message"] for row in results if "error_code" in row)
    assert results[14]["id"] == "14" and results[14]["tags"]
    assert (report["rows"], report["failed"]) == (17, 10)


def test_a_row_that_kills_its_worker_is_alone_with_its_error(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    rows = rows_of(70, row5={"text": CRASH}, row6={"text": CRASH}, row50={"text": f"a{CRASH}"})
    run(write_jsonl(covers / "crash.jsonl", rows), keep=("views",), workers=2)
    results = output(tmp_path / "out")
    assert [row["row"] for row in results] == list(range(70))
    errors = {row["row"]: row for row in results if "error_code" in row}
    assert {n: row["error_code"] for n, row in errors.items()} == dict.fromkeys((5, 6, 50), KILLED)
    assert errors[50]["id"] == "v50" and errors[50]["views"] == 50
    assert not any((tmp_path / "out" / ".vlserve" / "careful").iterdir())


def test_a_row_that_hangs_is_alone_with_its_error(covers: Path, run: Run, tmp_path: Path) -> None:
    archive = pack_echo(tmp_path, "slow", 1, delay_ms=600_000, delay_share=0.03)
    file = write_jsonl(covers / "hang.jsonl", rows_of(32))
    run(file, archive=archive, item_timeout_s=2.0)
    results = output(tmp_path / "out")
    timeouts = [row for row in results if "error_code" in row]
    assert 1 <= len(timeouts) <= 3
    assert {row["error_code"] for row in timeouts} == {TIMED_OUT}
    assert len(results) == 32 and all("tags" in row for row in results if row not in timeouts)


def test_an_archive_that_does_not_open_ends_the_job(
    covers: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.batch.run._OPEN_WITHIN_S", 0.0)
    with pytest.raises(BatchError, match="does not open within"):
        run(write_jsonl(covers / "in.jsonl", rows_of(3)))


def test_a_damaged_row_group_is_errors_of_its_rows_with_their_ids(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    images = [{**row, "image": (covers / row.pop("img")).read_bytes()} for row in rows_of(30)]
    file = parquet(covers / "damaged.parquet", images, row_group_size=10, compression="none")
    with pyarrow.parquet.ParquetFile(file) as parquet_file:
        group = parquet_file.metadata.row_group(1)
        chunk = next(
            c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image"
        )
        offset = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    with file.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 40)
    run(file)
    results = output(tmp_path / "out")
    assert [row["id"] for row in results] == [f"v{n}" for n in range(30)]
    failed_rows = [row["row"] for row in results if "error_code" in row]
    assert failed_rows == list(range(10, 20))
    assert "row group 1 cannot be read" in results[10]["error_message"]


def test_parquet_output_has_the_tasks_columns_in_every_part(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    rows = rows_of(60, row40={"img": "absent.jpg"})
    run(write_jsonl(covers / "in.jsonl", rows), format="parquet", keep=("views",), workers=2)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    schemas = {pyarrow.parquet.read_schema(part).to_string() for part in parts}
    assert len(parts) == 2 and len(schemas) == 1
    join_parts(tmp_path / "out", "parquet", tmp_path / "all.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet")
    assert table.column("row").to_pylist() == list(range(60))
    tags = pyarrow.list_(pyarrow.struct({"tag": pyarrow.string(), "score": pyarrow.float64()}))
    assert table.schema.field("tags").type == tags
    assert table.column("error_code").to_pylist().count("image_unreadable") == 1
    assert table.column("tags")[40].as_py() is None and table.column("tags")[39].as_py()


def test_the_same_command_again_runs_nothing_twice(covers: Path, run: Run, tmp_path: Path) -> None:
    file = write_jsonl(covers / "in.jsonl", rows_of(100))
    run(file)
    out = tmp_path / "out"
    before = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    (out / ".vlserve" / "receipts" / "00001.json").unlink()
    report = run(file)
    after = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert [name for name in before if after[name] != before[name]] == ["part-00001.jsonl"]
    assert (report["parts_of_earlier_runs"], report["rows"]) == (2, 100)


def test_parts_that_were_cut_otherwise_are_refused(covers: Path, run: Run, tmp_path: Path) -> None:
    file = write_jsonl(covers / "in.jsonl", rows_of(100))
    run(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlserve.batch.parts.FIRST_ROWS", 16)
        with pytest.raises(BatchError, match="another version of vlserve has cut"):
            run(file)
    assert run(file)["rows"] == 100


def test_another_job_in_the_same_folder_is_refused(covers: Path, run: Run, tmp_path: Path) -> None:
    file = write_jsonl(covers / "in.jsonl", rows_of(20))
    run(file)
    with pytest.raises(BatchError, match="another --keep"):
        run(file, keep=("views",))
    with pytest.raises(BatchError, match=r"of .*tagger-1\.mar"):
        run(file, archive=pack_echo(tmp_path, "tagger", 1, answer_shift=1))
    with pytest.raises(BatchError, match="other input files"):
        run(file, write_jsonl(covers / "more.jsonl", rows_of(3)))
    write_jsonl(file, rows_of(21))
    with pytest.raises(BatchError, match="has changed since the job began"):
        run(file)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BatchError, match="is not empty and holds no job"):
        run(file, out=tmp_path / "full")


def test_rows_that_failed_run_again_and_no_others(covers: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(40, row3={"img": "later.jpg"}, row35={"img": "later.jpg"})
    file = write_jsonl(covers / "retry.jsonl", rows)
    assert run(file)["failed"] == 2
    (covers / "later.jpg").write_bytes((covers / "cover0.jpg").read_bytes())
    assert run(file)["failed"] == 2
    assert run(file, retry_errors=True)["failed"] == 0
    results = output(tmp_path / "out")
    assert [row["row"] for row in results] == list(range(40)) and results[3]["tags"]


@pytest.mark.parametrize("name", ["row", "tags"])
def test_a_kept_column_that_the_output_has_itself_is_refused(
    name: str, covers: Path, run: Run, tmp_path: Path
) -> None:
    file = write_jsonl(covers / "own.jsonl", [row | {name: 3} for row in rows_of(4)])
    with pytest.raises(BatchError, match=f"{name}: the output has {name} of its own; leave it out"):
        run(file, keep=(name,))
    assert not (tmp_path / "out").exists()


def batch_command(archive: Path, file: Path, out: Path, *options: str) -> list[str]:
    script = Path(sys.executable).with_name("vlserve")
    command = [str(script), "batch", str(archive), "--input", str(file)]
    return [*command, "--output", str(out), "--workers", "2", *options]


def finished_parts(out: Path) -> int:
    return len(list((out / ".vlserve" / "receipts").glob("*.json")))


def wait_for_parts(out: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while finished_parts(out) < count and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.long
def test_killed_drivers_and_workers_lose_and_double_nothing(covers: Path, tmp_path: Path) -> None:
    file = write_jsonl(covers / "many.jsonl", rows_of(20_000))
    out = tmp_path / "out"
    command = batch_command(covers / "tagger-1.mar", file, out)
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_parts(out, 2 + 2 * kill, process)
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        if workers and kill:
            workers[0].kill()
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = subprocess.run([*command, "--json"], capture_output=True, check=True)
    assert json.loads(result.stdout)["rows"] == 20_000
    results = output(out)
    assert [row["row"] for row in results] == list(range(20_000))
    assert not any("error_code" in row for row in results)


def heed_ctrl_c() -> None:
    """A shell has its background jobs ignore it, and all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_soon_and_the_same_command_goes_on(covers: Path, tmp_path: Path) -> None:
    file = write_jsonl(covers / "stop.jsonl", rows_of(20_000))
    out = tmp_path / "out"
    command = batch_command(covers / "tagger-1.mar", file, out)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    wait_for_parts(out, 2, process)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"the same command goes on" in stdout
    assert not [worker for worker in workers if worker.is_running()]
    assert 2 <= finished_parts(out) < 13


def test_a_second_job_waits_for_nobody_for_ever(
    covers: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.batch.locks.WAIT_FOR_LOCK_S", 0.3)
    file = write_jsonl(covers / "lock.jsonl", rows_of(20))
    run(file)
    lock = os.open(tmp_path / "out" / ".vlserve" / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(BatchError, match="another job writes to"):
            run(file)
    finally:
        os.close(lock)
