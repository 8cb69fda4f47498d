"""The arithmetic of the speed runs: ratios, their noise, costs; bodies; the peers' programs."""

import ast
import csv
import io
import json
import math
from pathlib import Path

import pytest

from benchmarks.lib.closed_loop import load_result
from benchmarks.lib.photos import BODIES, Photo, jpeg
from benchmarks.lib.published import publish
from benchmarks.lib.ratios import Cell, Limit, as_csv, costs, cpu_ratios, markdown, rows, times
from benchmarks.peers.servers import FOLDER, PEERS
from benchmarks.serving import scale, speed

PHOTO = Photo(b"\xff\xd8 not decoded here", "零基础教学")


def cell(number: int, side: str, per_s: float, p50_ms: float = 10.0, errors: int = 0) -> Cell:
    failures = {"503": errors} if errors else {}
    return Cell(number, side, "int8", 16, per_s, p50_ms, 30.0, failures, 0.05, {"java": 0.2})


LIMITS = [Limit(1, "int8", 200.0, 8.0), Limit(2, "int8", 100.0, 8.0), Limit(3, "int8", 220.0, 8.0)]
CELLS = [
    cell(1, "ours", 190.0, 12.0),
    cell(1, "plain", 200.0),
    cell(2, "ours", 90.0, 11.0, errors=2),
    cell(2, "plain", 100.0),
    cell(3, "ours", 220.0, 14.0),
    cell(3, "plain", 220.0),
]


def test_a_ratio_is_of_its_own_round_s_limit_and_shows_its_noise() -> None:
    ours, _ = rows(CELLS, LIMITS)
    assert (ours.ratio.median, ours.ratio.low, ours.ratio.high) == (0.95, 0.9, 1.0)
    assert ours.p50_ms.median == 12.0


def test_failures_of_all_rounds_are_kept() -> None:
    ours, plain = rows(CELLS, LIMITS)
    assert ours.failures == {"503": 2}
    assert not plain.failures
    assert markdown([ours, plain]).splitlines()[2:] == [
        "| ours | 0.95 (0.90–1.00) | 2 |",
        "| plain | 1.00 (1.00–1.00) | 0 |",
    ]


def test_costs_compare_the_same_round() -> None:
    (cost,) = costs(CELLS, "ours", without="plain")
    assert cost.throughput.median == pytest.approx(0.05)
    assert cost.p50_ms.median == pytest.approx(2.0)


def test_times_of_a_server_that_never_answered_are_endless() -> None:
    silent = [cell(number, "silent", 0.0) for number in (1, 2, 3)]
    ((_, ratio),) = times([*CELLS, *silent], "ours", "silent")
    assert ratio.median == math.inf
    ((_, ratio),) = times(CELLS, "plain", "ours")
    assert ratio.median == pytest.approx(200 / 190)


def test_cpu_for_an_answer_is_compared_in_the_same_round() -> None:
    ours, _ = rows(CELLS, LIMITS)
    assert ours.server_ms.median == pytest.approx(1e3 * 0.2 / 190)
    ((connections, ratio),) = cpu_ratios(CELLS, "ours", "plain")
    assert connections == 16
    assert ratio.median == pytest.approx(200 / 190)
    assert (ratio.low, ratio.high) == pytest.approx((1.0, 100 / 90))


def test_the_page_holds_cpu_for_an_answer_against_bare_triton() -> None:
    plan = speed.Plan([16], rounds=2, seconds=4.0, warm_up_s=1.5)
    sides = ("ours int8 on TorchServe", "ours int8 on Triton", "triton")
    cells = [
        cell(number, side, per_s)
        for number in (1, 2)
        for side, per_s in zip(sides, (80.0, 100.0, 120.0), strict=True)
    ]
    page = speed.report(LIMITS[:2], cells, {}, plan)
    words = "CPU for an answer on {}, int8, at 16 connections: {} ({}–{}) of bare Triton's."
    assert words.format("TorchServe", "1.50", "1.50", "1.50") in page
    assert words.format("Triton", "1.20", "1.20", "1.20") in page


def test_every_cell_and_limit_is_in_the_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(CELLS, LIMITS))))
    assert len(lines) == len(CELLS) + len(LIMITS)
    assert [line["ratio"] for line in lines if line["side"] == "ours"] == [
        "0.9500",
        "0.9000",
        "1.0000",
    ]


def test_a_server_that_never_answered_is_shown_as_such() -> None:
    silent = load_result([], {"TimeoutError (afterwards)": 4}, 4, 2.0, 0.1)
    assert silent.answered == 0
    assert math.isnan(silent.p50_ms)
    dead = Cell(1, "dead", "int8", 4, 0.0, math.nan, math.nan, silent.failures, 0.05, {})
    (row,) = rows([dead], LIMITS)
    assert row.p50_ms.text() == "-"
    assert row.ratio.text() == "0.00 (0.00–0.00)"


def test_percentiles_are_those_of_the_answers() -> None:
    result = load_result([float(ms) for ms in range(1, 101)], {}, 1, 2.0, 0.1)
    assert (result.per_s, result.p50_ms, result.client_cpus) == (50.0, 50.5, 0.05)
    assert 99.0 <= result.p99_ms <= 100.0


def test_every_body_carries_image_and_text() -> None:
    assert PHOTO.shown in BODIES["form"](PHOTO).body
    binary = BODIES["v2-binary"](PHOTO)
    head = binary.body[: int(binary.headers["Inference-Header-Content-Length"])]
    sizes = [entry["parameters"]["binary_data_size"] for entry in json.loads(head)["inputs"]]
    assert sum(sizes) + len(head) == len(binary.body)
    for kind in ("item-list", "v2-json"):
        json.loads(BODIES[kind](PHOTO).body)


def test_a_drawn_photo_is_the_same_every_time_and_of_the_size_asked_for() -> None:
    photo = jpeg(1, (320, 180), 12_000)
    assert photo == jpeg(1, (320, 180), 12_000)
    assert len(photo) == pytest.approx(12_000, rel=0.1)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_has_its_programs_and_pins(name: str) -> None:
    folder = FOLDER / name
    for program in folder.glob("*.py"):
        ast.parse(program.read_text(encoding="utf-8"), str(program))
    assert (folder / "server.py").is_file()
    pins = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in pin for pin in pins)
    packages = {pin.partition("==")[0].lower() for pin in pins}
    assert {"numpy", "pillow", "pydantic", "onnxruntime", "tokenizers"} <= packages
    assert PEERS[name].body in BODIES


def test_growth_is_told_as_ratios_to_the_base() -> None:
    latencies = [
        scale.SizeLatency(640, 10.0, 0),
        scale.SizeLatency(1280, 12.5, 0),
        scale.SizeLatency(4000, 50.0, 0),
    ]
    assert scale.ratios(latencies, 1280) == {640: 0.8, 1280: 1.0, 4000: 4.0}


def test_a_part_is_put_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n", encoding="utf-8")
    publish("x", "new", page)
    assert (
        page.read_text(encoding="utf-8") == "# A\n<!-- x: begin -->\nnew\n<!-- x: end -->\nafter\n"
    )
    with pytest.raises(ValueError, match="lacks"):
        publish("y", "new", page)
