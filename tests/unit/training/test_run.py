"""A run of any job: it stops and goes on to the same bytes, and says where it cannot."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.errors import ExtraMissing, SettingsError, TrainingError
from vlserve.training.optimisers import OPTIMISERS, SCHEDULES, layer_depths, parameter_groups
from vlserve.training.options import TrainOptions, parse_options
from vlserve.training.run import best_epoch, train
from vlserve.training.state import load_facts, load_state, new_state, save_state
from vlserve.training.state_file import read_header

STEPS = 4


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored() -> Iterator[None]:
    """As in a terminal, also where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass
class LineJob:
    """Points of a line, with dropout; ``at`` is called before each step's losses."""

    trained: nn.Module
    at: Any = lambda step: None
    rows: int = 4
    steps: int = STEPS
    done: list[int] = field(default_factory=list)

    chosen_by = "fit"

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for _ in range(self.steps):
            yield torch.rand(self.rows, 3, generator=generator)

    def losses(self, network: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        self.done.append(len(self.done))
        self.at(len(self.done))
        targets = batch.sum(dim=1, keepdim=True)
        return {"line": F.mse_loss(network(F.dropout(batch, 0.5)), targets)}

    def figures(self, network: nn.Module) -> Mapping[str, float]:
        with torch.no_grad():
            return {"fit": -float((network(torch.eye(3)) - 1).square().mean())}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def job(**more: Any) -> LineJob:
    torch.manual_seed(0)
    return LineJob(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), **more)


def options(**more: Any) -> TrainOptions:
    return parse_options(TrainOptions, {"epochs": 3, "batch_size": 4, **more})


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("model.safetensors",)}


def state_of(out: Path) -> tuple[list[Any], dict[str, Any]]:
    epochs = load_facts(out / "last.safetensors")["epochs"]
    plain = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in epochs]
    state = new_state(job().trained, options(), 1)
    load_state(out / "last.safetensors", state)
    return plain, state.network.state_dict()


@pytest.mark.parametrize("more", [{}, {"accumulate": 3}, {"optimiser": "adafactor"}], ids=str)
def test_a_run_stopped_in_the_middle_goes_on_to_the_same_bytes(
    more: dict[str, Any], tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, part):
        folder.mkdir()
    train(job(), options(**more), 1, whole, facts={})
    ctrl_c = job(at=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        train(ctrl_c, options(**more), 1, part, facts={})
    assert len(ctrl_c.done) == 6  # the step under way was finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second_job = job()
    train(second_job, options(**more), 1, part, facts={}, resume=True)
    assert len(second_job.done) == 3 * STEPS - 6
    assert files(part) == files(whole)
    tensors = [(folder / "last.safetensors").read_bytes() for folder in (whole, part)]
    assert tensors_of(tensors[0]) == tensors_of(tensors[1])


@pytest.mark.parametrize("steps, last", [(1, 2), (STEPS, 2 * STEPS)], ids=["of-one", "of-some"])
def test_ctrl_c_in_the_last_step_of_an_epoch_ends_the_run_after_that_epoch(
    steps: int, last: int, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, part):
        folder.mkdir()
    train(job(steps=steps), options(), 1, whole, facts={})
    ctrl_c = job(
        at=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == last else None, steps=steps
    )
    with pytest.raises(KeyboardInterrupt):
        train(ctrl_c, options(), 1, part, facts={})
    assert len(ctrl_c.done) == last
    assert [epoch["epoch"] for epoch in load_facts(part / "last.safetensors")["epochs"]] == [1, 2]
    second_job = job(steps=steps)
    train(second_job, options(), 1, part, facts={}, resume=True)
    assert len(second_job.done) == steps and files(part) == files(whole)


def tensors_of(raw: bytes) -> bytes:
    """Without the header, which holds seconds."""
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_the_log_has_a_line_for_each_epoch_and_its_first_and_last_step(tmp_path: Path) -> None:
    train(job(), options(), 1, tmp_path, facts={})
    lines = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    steps = [line["step"] for line in lines if "step" in line]
    assert steps == [1, STEPS] * 3 and "line" in lines[0] and "learning_rate" in lines[0]
    assert [line["epoch"] for line in lines if "fit" in line] == [1, 2, 3]


def test_a_loss_that_is_no_number_names_its_step(tmp_path: Path) -> None:
    class Broken(LineJob):
        def losses(self, network: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
            losses = super().losses(network, batch)
            wrong = torch.tensor(float("nan"))
            return {**losses, "contrast": wrong} if len(self.done) == 6 else losses

    with pytest.raises(TrainingError, match="step 2 of epoch 2: the loss contrast is no longer"):
        train(Broken(job().trained), options(), 1, tmp_path, facts={})


def test_no_memory_names_its_step_and_what_to_try(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    with pytest.raises(TrainingError, match=r"step 1 of epoch 1: out of memory: .* batch_size"):
        train(job(at=fail), options(), 1, tmp_path, facts={})


def test_another_error_of_a_step_stays_itself(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(job(at=fail), options(), 1, tmp_path, facts={})


@pytest.mark.parametrize("optimiser", [name for name in OPTIMISERS if name != "adafactor"])
def test_every_optimiser_steps_and_is_restored(optimiser: str, tmp_path: Path) -> None:
    settings = options(optimiser=optimiser, learning_rate=1e-2)
    states = [new_state(job().trained, settings, 10) for _ in range(2)]
    before = {name: x.clone() for name, x in states[0].network.named_parameters()}
    step(states[0], 2)
    save_state(tmp_path / "state", states[0], {})
    load_state(tmp_path / "state", states[1])
    for state in states:
        step(state, 1, seed=7)
    after = [dict(state.network.named_parameters()) for state in states]
    assert all(torch.equal(after[0][name], after[1][name]) for name in before)
    assert any(not torch.equal(after[0][name], before[name]) for name in before)


def test_an_optimiser_whose_package_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ExtraMissing, match="pytorch-optimizer: pip install"):
        new_state(job().trained, options(optimiser="adamp"), 1)


def step(state: Any, times: int, seed: int = 3) -> None:
    torch.manual_seed(seed)
    for _ in range(times):
        batch = torch.rand(4, 3)
        state.step(F.mse_loss(state.network(batch), batch.sum(1, keepdim=True)))


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "constant"])
def test_every_schedule_warms_up_and_ends_lower(schedule: str) -> None:
    settings = options(schedule=schedule, epochs=10, step_epochs=1, warm_up=0.2)
    state = new_state(job().trained, settings, 20)
    rates = []
    for number in range(20):
        rates.append(state.learning_rate)
        step(state, 1)
        if number % 2:
            state.end_epoch(0.0)
    assert max(rates) == pytest.approx(settings.learning_rate, rel=1e-4)
    assert state.learning_rate < max(rates)
    if schedule != "plateau":
        assert rates[0] < max(rates)  # it warms up


def rates_of(**more: Any) -> list[float]:
    """The learning rate before each of 20 steps."""
    settings = options(epochs=10, step_epochs=2, warm_up=0.2, **more)
    state = new_state(job().trained, settings, 20)
    rates = []
    for _ in range(20):
        rates.append(state.learning_rate)
        step(state, 1)
    return rates


@pytest.mark.parametrize(
    "schedule", [name for name in SCHEDULES if name not in ("cosine", "step", "plateau")]
)
def test_noise_moves_a_rate_within_its_share_the_same_each_time(schedule: str) -> None:
    plain, noisy = rates_of(schedule=schedule), rates_of(schedule=schedule, rate_noise=0.3)
    assert noisy == rates_of(schedule=schedule, rate_noise=0.3)
    shares = [noisy_rate / rate - 1 for rate, noisy_rate in zip(plain, noisy, strict=True) if rate]
    assert max(map(abs, shares)) < 0.3
    assert len({round(share, 6) for share in shares}) > 10  # a number of its own each step


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_noise_is_laid_over_schedules_that_torch_steps(schedule: str) -> None:
    more = {"schedule": schedule, "lowest_rate": 1e-4 if schedule == "cosine" else 0.0}
    still = rates_of(**more, rate_noise=1e-9)
    assert still == pytest.approx(rates_of(**more), rel=1e-6)


def test_noise_needs_a_schedule_that_is_known_beforehand() -> None:
    with pytest.raises(SettingsError, match="plateau follows figures"):
        rates_of(schedule="plateau", rate_noise=0.1)


def test_batches_that_are_accumulated_step_like_one_of_all(tmp_path: Path) -> None:
    batch = torch.rand(8, 3, generator=torch.Generator().manual_seed(2))
    networks = []
    for parts in (1, 4):
        state = new_state(job().trained, options(accumulate=parts, optimiser="sgd"), 8)
        for part in batch.chunk(parts):
            state.step(F.mse_loss(state.network(part), part.sum(1, keepdim=True)))
        networks.append(state.network.state_dict())
    for name, tensor in networks[0].items():
        torch.testing.assert_close(tensor, networks[1][name])


def test_bf16_computes_in_it_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    dtypes = set()

    class DtypeJob(LineJob):
        def losses(self, network: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
            output = network(batch)
            dtypes.add(output.dtype)
            return {"line": F.mse_loss(output.float(), batch.sum(dim=1, keepdim=True))}

    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        dtypes.clear()
        train(DtypeJob(job().trained), options(precision=precision), 1, tmp_path, facts={})
        assert dtypes == {dtype}
        weights = load_file(tmp_path / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_run_without_one_whole_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="13 batches make a step, and the run has 12"):
        train(job(), options(accumulate=13), 1, tmp_path, facts={})
    train(job(), options(accumulate=12, average_decay=0), 1, tmp_path, facts={})
    last = load_file(tmp_path / "last.safetensors")
    assert not torch.equal(last["network.0.weight"], job().trained.get_parameter("0.weight"))


def test_frozen_parts_stay_and_unknown_ones_are_named() -> None:
    network = job().trained
    groups = parameter_groups(network, options(freeze="0"))
    assert sum(len(group["params"]) for group in groups) == 2
    assert not network.get_parameter("0.weight").requires_grad
    with pytest.raises(SettingsError, match="no part visual_encoder; it has 0, 2"):
        parameter_groups(job().trained, options(freeze="visual_encoder"))
    with pytest.raises(SettingsError, match="nothing is left to learn"):
        parameter_groups(job().trained, options(freeze="0,2"))


def test_rates_fall_from_heads_to_embeddings() -> None:
    names = [
        "visual_encoder.patch_embed.proj.weight",
        "visual_encoder.blocks.0.attn.qkv.weight",
        "visual_encoder.blocks.1.attn.qkv.weight",
        "text_encoder.embeddings.word_embeddings.weight",
        "text_encoder.encoder.layer.0.output.dense.weight",
        "itm_head.weight",
    ]
    assert list(layer_depths(names).values()) == [3, 2, 1, 2, 1, 0]


def test_rates_of_a_network_with_a_teacher_fall_in_each_part_by_itself() -> None:
    shallow, deep = nn.Module(), nn.Module()
    for part, depth in ((shallow, 1), (deep, 3)):
        part.embeddings = nn.Linear(2, 2, bias=False)
        part.layer = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(depth))
    pair = nn.Module()
    pair.network = nn.ModuleDict({"visual_encoder": shallow, "text_encoder": deep})
    groups = parameter_groups(pair, options(layer_decay=0.5, learning_rate=1.0))
    rates = {id(x): group["lr"] for group in groups for x in group["params"]}
    assert rates[id(shallow.embeddings.weight)] == 0.25
    assert rates[id(deep.embeddings.weight)] == 0.5**4


def test_the_first_of_the_best_epochs_is_best() -> None:
    epochs = [{"epoch": 1, "fit": 0.1}, {"epoch": 2, "fit": 0.3}, {"epoch": 3, "fit": 0.3}]
    assert best_epoch(epochs, "fit") == 2


def test_a_state_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its moments had a name each, and torch's generator was not kept."""
    state = new_state(job().trained, options(), 10)
    step(state, 2)
    optimiser = state.optimizer.state_dict()
    tensors = {
        **{f"network.{name}": x for name, x in state.network.state_dict().items()},
        **{f"average.{name}": x for name, x in state.average.state_dict().items()},
        **{
            f"optimizer.{index}.{name}": x
            for index, moments in optimiser["state"].items()
            for name, x in moments.items()
        },
    }
    groups, schedule = optimiser["param_groups"], state.scheduler.state_dict()
    header = {"param_groups": groups, "scheduler": schedule, "facts": {"epochs": []}}
    apart = {name: x.clone() for name, x in tensors.items()}
    save_file(apart, tmp_path / "last.safetensors", metadata={"state": json.dumps(header)})
    second_state = new_state(job().trained, options(), 10)
    load_state(tmp_path / "last.safetensors", second_state)
    for training_state in (state, second_state):
        step(training_state, 1, seed=7)
    after = (dict(state.network.named_parameters()), dict(second_state.network.named_parameters()))
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def test_gradients_that_an_earlier_version_kept_are_read_by_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept those of the first process alone."""
    file = tmp_path / "last.safetensors"
    state, second_state = (new_state(job().trained, options(accumulate=2), 10) for _ in range(2))
    step(state, 1)
    save_state(file, state, {"epochs": []})
    header = read_header(file)
    assert header.pop("ranks") == 1
    save_file(load_file(file), file, metadata={"state": json.dumps(header)})
    monkeypatch.setattr("vlserve.training.state.rank", lambda: 1)
    load_state(file, second_state)
    expected = {name: x.grad for name, x in state.network.named_parameters()}
    actual = {name: x.grad for name, x in second_state.network.named_parameters()}
    assert second_state.backwards == 1 and len(expected) == 4
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=0)
