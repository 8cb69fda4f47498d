"""What a run says of itself: log.jsonl, TensorBoard's events, curves, progress, Ctrl-C."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.progress import Progress as Bars

from vlserve import cli
from vlserve.cli.output import stderr
from vlserve.errors import ExtraMissing
from vlserve.training.demo_data import DemoData
from vlserve.training.progress import describe_epoch, describe_task, training_progress
from vlserve.training.run import Progress
from vlserve.training.run_log import CURVES, EVENTS, LOG, RunLog, open_log, read_log

LOOKS_AT_PICTURES = True
STEPS = 3
TINY = ("image_height=32", "image_width=32", "resnet_width=8")


def write(log: RunLog, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        for step in range(1, STEPS + 1):
            log.step(epoch, step, {"contrast": 1 / step, "match": 0.5}, 1e-3 / epoch)
        log.epoch({"epoch": epoch, "train_loss": 1.0, "mean_recall": 0.1 * epoch, "seconds": 2.0})
    log.close()


def test_events_hold_losses_rate_and_figures_by_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(open_log(tmp_path, "tensorboard", STEPS, 1, 0), epochs=2)
    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *("loss/contrast", "loss/match", "learning_rate"),
        *("figure/mean_recall", "figure/train_loss"),
    }
    points = [(event.step, event.value) for event in events.Scalars("figure/mean_recall")]
    assert points == [(3, pytest.approx(0.1)), (6, pytest.approx(0.2))]
    assert [event.step for event in events.Scalars("loss/contrast")] == [1, 3, 4, 6]


def test_without_its_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExtraMissing, match="extra `tensorboard`"):
        open_log(tmp_path, "tensorboard", STEPS, 1, 0)


def test_a_log_goes_on_where_the_state_stands(tmp_path: Path) -> None:
    """A run that was killed has written lines of steps that are done again."""
    write(open_log(tmp_path, "jsonl", STEPS, 1, 0), epochs=3)
    with (tmp_path / LOG).open("a", encoding="utf-8") as file:
        file.write('{"epoch": 4, "st')
    open_log(tmp_path, "jsonl", STEPS, 3, 1)
    places = [(line["epoch"], line.get("step")) for line in read_log(tmp_path)]
    assert places == [(1, 1), (1, 3), (1, None), (2, 1), (2, 3), (2, None), (3, 1)]


def test_curves_show_what_the_log_says(tmp_path: Path) -> None:
    log = open_log(tmp_path, "jsonl", STEPS, 1, 0)
    log.draw()
    assert not (tmp_path / CURVES).exists()  # there is nothing to show
    write(log, epochs=1)
    log.draw()
    first = (tmp_path / CURVES).read_bytes()
    write(log, epochs=2)
    log.draw()
    assert (tmp_path / CURVES).read_bytes() != first
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500


def test_a_line_of_progress_says_rate_and_time_left() -> None:
    time_s = 0.0
    bars = Bars(disable=True, get_time=lambda: time_s)
    task = bars.add_task("step", total=100)
    for count in (10, 20):
        time_s += 5
        bars.update(task, completed=count)
    step = Progress("step", 20, 100, {"caption": 2.5})
    line = describe_task(step, bars.tasks[0])
    assert line == "step 20 of 100, caption 2.500, 2 steps/s, 40 s left"


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training x", stderr) as show:
        show(Progress("read", 8, 8))
        show(Progress("step", 1, 4, {"tags": 2.0}))
        show(Progress("step", 4, 4, {"tags": 1.0}))
        show(Progress("train", 1, 1, {"train_loss": 1.5, "accuracy": 0.5}))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["training x", "read 8 of 8"]
    assert lines[2].startswith("step 4 of 4, tags 1.000")  # not a line a step
    assert lines[3] == "epoch 1 of 1: train_loss 1.500, accuracy 0.500"


def test_a_search_that_ended_early_is_said() -> None:
    step = Progress("train", 1, 1, {"train_loss": 1.5, "converged": False})
    assert describe_epoch(step).endswith("; the search ended before the optimum")


@pytest.mark.training
def test_ctrl_c_ends_the_command_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    demo: DemoData,
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = {"step": 2}

    @contextmanager
    def interrupting_progress(what: str, console: Any) -> Iterator[Any]:
        def show(step: Progress) -> None:
            if step.stage == "step" and step.done == stop["step"]:
                os.kill(os.getpid(), signal.SIGINT)

        yield show

    monkeypatch.setattr("vlserve.training.progress.training_progress", interrupting_progress)
    words = ["vlserve", "train", "resnet_gru", "--out", str(tmp_path / "out")]
    words += ["--data", str(demo.train), "--val", str(demo.val), "--set", "epochs=2"]
    words += [word for setting in (*TINY, "batch_size=8") for word in ("--set", setting)]
    try:
        assert run(monkeypatch, words) == 130
        assert "--resume goes on" in capsys.readouterr().err
        assert (tmp_path / "out" / CURVES).is_file()
        stop["step"] = -1
        assert run(monkeypatch, [*words, "--resume"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    lines = [line for line in read_log(tmp_path / "out") if "step" in line]
    steps = [(line["epoch"], line["step"]) for line in lines]
    assert steps == sorted(set(steps)) and {epoch for epoch, _ in steps} == {1, 2}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))[
        "best_epoch"
    ] in (1, 2)


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as system_exit:
        cli.main()
    return int(system_exit.value.code or 0)
