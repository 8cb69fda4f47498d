"""Checkpoint files are data: what holds code, or is damaged, is refused."""

import argparse
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.checkpoint import load_into, open_checkpoint, put_into, read_checkpoint

WEIGHTS = {"a": torch.arange(300.0)}


class Malicious:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_what_training_scripts_save_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-3),
        "best": np.float64(0.5),
        "numpy_state": np.random.RandomState(0).get_state(),
        "python_state": random.Random(0).getstate(),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "model.pth")
    assert torch.equal(read_checkpoint(tmp_path / "model.pth")["a"], WEIGHTS["a"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_code_is_refused_and_its_code_is_not_run(
    zipped: bool, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / "model.pth"
    content = {"state_dict": WEIGHTS, "x": Malicious(trap)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch, match=r"would run posix\.mkdir"):
        read_checkpoint(file)
    file.write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(CheckpointMismatch):
        read_checkpoint(file)
    assert not trap.exists()


class Tagger(nn.Module):
    """A network whose class only the code that trained it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "module"),
    [
        (Tagger(), "test_checkpoint.Tagger"),
        (nn.Sequential(nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
        ({"model": Tagger(), "epoch": 3}, "test_checkpoint.Tagger"),
        (nn.DataParallel(Tagger()), "test_checkpoint.Tagger"),
    ],
    ids=["own", "torch's", "under_a_key", "parallel"],
)
def test_a_whole_pickled_network_is_named(
    content: Any, module: str, zipped: bool, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch) as refusal:
        read_checkpoint(file)
    assert f"holds a whole pickled module ({module})" in str(refusal.value)
    assert "Save the network's state_dict()" in str(refusal.value)


def test_what_else_is_saved_under_a_checkpoints_name_is_named(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    cases: list[tuple[Any, str]] = [
        (optimizer, "it is an optimizer's state. Give the file of the network's"),
        ({"optimizer": optimizer, "epoch": 3}, "with an optimizer's state under optimizer"),
        ({"rng": torch.ones(9), "numpy": None}, "a dictionary of rng, numpy"),
        ({"w": np.ones(3), "b": np.ones(2)}, "a dictionary of numpy arrays, w, b. Save them as"),
        ([torch.ones(2)], "tensors without names. Save the network's state_dict()"),
        ([1, 2], "a list"),
        ({}, "an empty dictionary"),
        (torch.ones(3), "a Tensor"),
    ]
    for content, message in cases:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(CheckpointMismatch) as refusal:
            read_checkpoint(tmp_path / "model.pth")
        assert message in str(refusal.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model"
    torch.save(WEIGHTS, file)
    archive = file.read_bytes()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)
    legacy = file.read_bytes()
    save_file(WEIGHTS, file)
    safetensors = file.read_bytes()
    noise = random.Random(1)
    for whole in (archive, legacy, safetensors, noise.randbytes(600)):
        for length in (0, 5, 9, 40, 200, len(whole) - 300):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointMismatch):
                read_checkpoint(file)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {}}, {}], ids=str)
def test_a_file_without_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointMismatch, match="holds no weights"):
        read_checkpoint(tmp_path / "model.pth")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="no checkpoint"):
        read_checkpoint(tmp_path / "model.pth")


def test_a_load_is_strict() -> None:
    network = nn.Linear(2, 3)
    with pytest.raises(CheckpointMismatch, match="missing bias; unexpected scale"):
        load_into(network, {"weight": torch.ones(3, 2), "scale": torch.ones(1)}, "linear")
    with pytest.raises(CheckpointMismatch, match=r"bias is \(4,\), the network has \(3,\)"):
        load_into(network, {"weight": torch.ones(3, 2), "bias": torch.ones(4)}, "linear")
    load_into(network, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "linear")
    assert torch.equal(network.weight, torch.ones(3, 2))


class Tied(nn.Module):
    """Each kind of place that a tensor has in a network."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.again = self.head
        self.recurrent = nn.GRU(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.arange(3.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.norm(self.embedding(ids))
        return self.recurrent(states)[0], self.head(states), self.steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_network_that_is_given_the_tensors_is_as_one_that_copies_them(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(tensor).abs().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in Tied().state_dict().items()
    }
    torch.save(state, tmp_path / "tied.pth")
    copy, view = Tied().eval(), Tied().eval()
    load_into(copy, state, "tied")
    tensors = open_checkpoint(tmp_path / "tied.pth", mapped=True).state
    put_into(view, tensors, "tied")
    ids = torch.arange(5)
    for ours, theirs in zip(view(ids), copy(ids), strict=True):
        assert torch.equal(ours, theirs)
    assert view.head.weight is view.embedding.weight is view.again.weight
    shares = view.head.bias.data_ptr() == tensors["again.bias"].data_ptr()
    assert shares is (dtype is torch.float32)
    assert not any(parameter.requires_grad for parameter in view.parameters())
    with pytest.raises(CheckpointMismatch, match="missing"):
        put_into(Tied(), {}, "tied")


@pytest.mark.parametrize("mapped", [True, False])
def test_a_byte_that_changed_is_found(tmp_path: Path, mapped: bool) -> None:
    file = tmp_path / "x.pth"
    torch.save({"weight": torch.zeros(1000)}, file)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointMismatch, match="torch file"):
        open_checkpoint(file, mapped=mapped)
