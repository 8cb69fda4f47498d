"""What a job tells of itself: how long it takes, what it costs, which ids come twice."""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from support.batch_rows import output, rows_of, write_jsonl
from vlserve.batch import duplicates
from vlserve.batch.duplicates import count_duplicates
from vlserve.batch.job import Options, Receipt
from vlserve.batch.parts import ParquetPart, TextPart, cut
from vlserve.batch.progress import Pace, duration
from vlserve.batch.report import plot_of, render
from vlserve.batch.run import Crewing, predict_batch
from vlserve.batch.sample import Sample, Spread, draw, predict
from vlserve.batch.sources import find_sources

Run = Callable[..., Mapping[str, Any]]


def receipt(part: int, **changes: Any) -> Receipt:
    plain = {"first_row": 0, "rows": 10, "errors": {}, "labels": {}, "seconds": 2.0}
    return Receipt(part=part, **plain | {"cpu_seconds": 1.0, "ended_at": 100.0 + part} | changes)


def test_time_left_goes_by_the_share_of_the_bytes() -> None:
    pace = Pace(began_at=100.0)
    assert pace.left_s(110.0) is None
    pace.keep(0.5)
    pace.count(rows=40, failures=2, share=0.1)
    assert pace.left_s(110.0) == pytest.approx(40.0)
    assert pace.line(110.0) == "40 rows, 2 failed, 4.0 rows/s, 40 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (12_000, "3 h 20 min")]
)
def test_a_length_of_time_is_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_of_all_parts_make_the_whole(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "a" * (n % 9)} for n in range(500)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=100
    )
    (tmp_path / "c.csv").write_text("id,text\n" + "1,abc\n" * 3000, encoding="utf-8")
    names = ("a.jsonl", "b.parquet", "c.csv")
    parts = list(cut(find_sources([str(tmp_path / name) for name in names])))
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert all(part.share >= 0 for part in parts)


def test_kept_ones_are_spread_evenly() -> None:
    spread: Spread[int] = Spread(10)
    for number in range(1000):
        spread.offer(number)
    sample = spread.kept(10)
    assert spread.seen == 1000 and len(sample) == 10
    assert all(60 <= after - before <= 190 for before, after in pairwise(sample))
    assert sample[0] < 100 and sample[-1] >= 800


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_sample_has_rows_of_every_source(tmp_path: Path, compression: str) -> None:
    rows = [{"id": str(n), "text": "a"} for n in range(1000)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(
        table, tmp_path / "a.parquet", row_group_size=20, compression=compression
    )
    write_jsonl(tmp_path / "b.jsonl", rows[:250])
    sources = find_sources([str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")])
    sample = draw(sources, 100, 2, tmp_path)
    assert sample.input_rows == 1250
    texts = [part for part in sample.parts if isinstance(part, TextPart)]
    tables = [part for part in sample.parts if isinstance(part, ParquetPart)]
    assert (sum(part.rows for part in texts), sum(part.rows for part in tables)) == (
        20,
        80,
    )
    assert [part.number for part in sample.parts] == list(range(len(sample.parts)))
    file = tables[0].file
    assert file is not None and tables[0].source.path == tmp_path / "a.parquet"
    ids = [int(row["id"]) for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert len(ids) == 80 and ids[0] < 20 and ids[-1] > 900


def test_the_whole_is_predicted_by_all_but_each_workers_first_part() -> None:
    receipts = [receipt(0, pid=1, cpu_seconds=9.0), receipt(1, pid=2, cpu_seconds=9.0)]
    receipts += [receipt(n, pid=1 + n % 2, errors={"x": 1}) for n in range(2, 6)]
    prediction = predict(
        Sample((), 1000),
        receipts,
        workers=2,
        start_s=5.0,
        sampling_cpu_s=29.0,
        core_hour_price=3.6,
    )
    assert (prediction.sampled_rows, prediction.failed_rows) == (60, 4)
    assert prediction.cpu_seconds == pytest.approx(29.0 + 940 * 0.1)
    assert prediction.seconds == pytest.approx(5.0 + 1000 * 0.2 / 2)
    assert prediction.cost == pytest.approx(0.123)
    assert prediction.cost_per_million == pytest.approx(100.0)


def test_duplicates_are_counted_in_several_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "0.ids", tmp_path / "1.ids"]
    digests = [number.to_bytes(8, "little") for number in range(40)]
    files[0].write_bytes(b"".join(digests[:30]))
    files[1].write_bytes(b"".join(digests[25:] + digests[:2]))
    assert count_duplicates(files, [30, 17]) == 7
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", 10)
    assert count_duplicates(files, [30, 17]) == 7
    assert count_duplicates(files, [30, 18]) is None
    assert count_duplicates([tmp_path / "2.ids"], [1]) is None


def test_the_page_escapes_what_the_data_say() -> None:
    report = {
        **dict.fromkeys(("rows", "failed", "parts", "seconds", "rows_per_s", "cpu_seconds"), 1),
        **{"run_cpu_seconds": 1, "parts_of_earlier_runs": 0, "duplicate_ids": None, "version": 1},
        **{"model": "m", "archive": "a", "sha256": "0", "task": "tag", "out": "/tmp/out"},
        **{"labels": {"<b>cat": 2, "猫": 1}, "errors": {"image_unreadable": 1}},
        **{"cost_per_million": 1.5, "core_hour_price": 0.04},
    }
    page = render(report, plot_of([receipt(0), receipt(1)]))
    assert "&lt;b&gt;cat" in page and "猫" in page and "image_unreadable" in page
    assert "<svg" in page and "1.5, at 0.04" in page
    assert plot_of([receipt(0, ended_at=0.0)]) == ""


def test_a_job_reports_duplicates_and_its_cost(covers: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(80, row5={"id": "v4"}, row70={"id": "v4"}, row9={"id": "\ud800"})
    report = run(write_jsonl(covers / "twice.jsonl", rows), core_hour_price=3600.0)
    assert report["duplicate_ids"] == 2
    assert report["cost_per_million"] == pytest.approx(report["cpu_seconds"] / 80 * 1e6)
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert output(tmp_path / "out")[9]["id"] == "\ud800"


def test_a_sample_predicts_and_writes_nothing(covers: Path, tmp_path: Path) -> None:
    file = write_jsonl(covers / "sampled.jsonl", rows_of(600, row0={"img": "absent.jpg"}))
    before = sorted(covers.iterdir())
    archive = covers / "tagger-1.mar"
    prediction = predict_batch(archive, [str(file)], 100, Options(), Crewing(workers=1))
    assert (prediction.sampled_rows, prediction.input_rows, prediction.failed_rows) == (100, 600, 1)
    assert prediction.cpu_ms_per_row > 0 and prediction.cost is None
    assert sorted(covers.iterdir()) == before
