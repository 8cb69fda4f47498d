"""Two processes train as one with the joint batch does; a killed one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from support import two_ranks
from vlserve.testing.stack import free_ports
from vlserve.training.demo_data import DemoData
from vlserve.training.processes import environment, train_in_processes
from vlserve.training.run import train

PATIENCE_S = 600
"""A hung process fails its test; nothing is judged by it."""


def in_two_processes(folder: Path, *words: str) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)), "WORLD_SIZE": "2"}
    path = os.pathsep.join(
        filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])))
    )
    processes = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(folder), *words],
            env={**environment(2), **address, "RANK": str(rank), "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_processes_train_as_one_with_the_joint_batch(tmp_path: Path) -> None:
    alone, joint = tmp_path / "alone", tmp_path / "joined"
    for folder in (alone, joint):
        folder.mkdir()
    whole = train(two_ranks.new_job(), two_ranks.options(), 1, alone, facts={})
    in_two_processes(joint)
    logs = [
        [
            json.loads(line)
            for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for folder in (alone, joint)
    ]
    steps = [[line["plane"] for line in lines if "step" in line] for lines in logs]
    assert len(steps[0]) == 2 * len(whole)  # one process wrote
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
    fits = [[line["fit"] for line in lines if "fit" in line] for lines in logs]
    assert fits[0] == pytest.approx(fits[1], rel=1e-4)
    weights = [load_file(folder / "model.safetensors") for folder in (alone, joint)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-5, atol=1e-7)
    for rank in range(2):
        dump = torch.load(joint / f"rank-{rank}.pt")
        assert dump["ids"].tolist() == [1, 1, 2, 2] and dump["images"][0].tolist() == [
            1,
            1,
            2,
            2,
        ]
        assert float(dump["gradient"]) == 2.0 and dump["any"]  # of both ranks' sums


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("words", [(), ("branched",)], ids=("plain", "branched"))
def test_gradients_that_wait_are_each_process_s_own(words: tuple[str, ...], tmp_path: Path) -> None:
    """A run that is stopped between two steps of the optimizer goes on to the same bytes, and every
    process has the same weights: also of a part of the network that one process alone asks, in
    batches that wait."""
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    in_two_processes(tmp_path, "stopped", *words)
    for name in ("model.safetensors", "last.safetensors"):
        whole, stopped = (load_file(folder / name) for folder in folders)
        assert whole.keys() == stopped.keys()
        assert [key for key, tensor in whole.items() if not tensor.equal(stopped[key])] == []
    for folder in folders:
        first, second = (torch.load(folder / f"rank-{rank}.pt") for rank in range(2))
        assert [key for key, tensor in first.items() if not tensor.equal(second[key])] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_rank_goes_on_from_the_last_state(demo: DemoData, tmp_path: Path) -> None:
    words = ["resnet_gru", f"--data={demo.train}", f"--val={demo.val}"]
    sizes: dict[str, Any] = {
        "image_height": 32,
        "image_width": 32,
        "resnet_width": 4,
        "batch_size": 6,
    }
    sizes |= {"epochs": 8, "patience": 8, "dropout": 0}
    words += [f"--set={name}={value}" for name, value in sizes.items()]
    train_in_processes(2, [*words, f"--out={tmp_path / 'whole'}"])
    out = tmp_path / "killed"
    with ThreadPoolExecutor(1) as threads:
        kill = threads.submit(kill_a_rank, out / "last.safetensors")
        train_in_processes(2, [*words, f"--out={out}"])
        assert kill.result() is True
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name])
    epochs = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 9))


def kill_a_rank(state: Path) -> bool:
    """Kill the second process of a run, once a state was kept; whether one was there."""
    until = time.monotonic() + PATIENCE_S
    while not state.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if "vlserve.training" in process.cmdline() and process.environ().get("RANK") == "1":
            process.send_signal(signal.SIGKILL)
            return True
    return False
