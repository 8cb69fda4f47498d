"""engine.device: what is written for Triton, what a worker does, what is refused. Without a GPU."""

import os
from pathlib import Path

import onnxruntime
import pytest

from vlserve.control.engine.triton_repository import WrittenVersion, configuration_text
from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack.cuda import refuse_missing_cuda
from vlserve_worker.device import CUDA, DeviceMissing, choose_device

Patch = pytest.MonkeyPatch
CPU = "CPUExecutionProvider"


def has(monkeypatch: Patch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))


def wished(**engine: object) -> Settings:
    return Settings(engine=EngineSettings.model_validate(engine))


@pytest.mark.parametrize(
    ("device", "kind"), [("auto", "KIND_CPU"), ("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")]
)
def test_the_kind_of_instances_follows_the_device(device: str, kind: str) -> None:
    version = WrittenVersion(2, 8, 100, {"device": device}).filled_up()
    assert configuration_text("m-1", version).count(f" kind: {kind} count: 1 ") == 2


def test_a_worker_on_cuda_sees_its_own_gpu_alone(monkeypatch: Patch) -> None:
    has(monkeypatch, CUDA, CPU)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    choose_device("cuda", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    assert onnxruntime.get_available_providers() == [CUDA, CPU]


def test_a_worker_on_the_cpu_is_offered_no_gpu(monkeypatch: Patch) -> None:
    has(monkeypatch, CUDA, CPU)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    choose_device("auto")
    assert onnxruntime.get_available_providers() == [CUDA, CPU]
    choose_device("cpu")
    assert onnxruntime.get_available_providers() == [CPU]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_where_onnxruntime_has_no_cuda_the_worker_says_so_in_a_line(monkeypatch: Patch) -> None:
    has(monkeypatch, CPU)
    with pytest.raises(DeviceMissing, match=r"^onnxruntime .* no CUDA: replace it by [^\n]*$"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("engine", "gpu", "providers", "message"),
    [
        ({"kind": "triton"}, False, (CPU,), "no NVIDIA GPU here"),
        ({"kind": "both"}, True, (CPU,), "no CUDA"),
        ({"kind": "torchserve"}, True, (CUDA, CPU), "TorchServe does not take"),
    ],
)
def test_up_refuses_cuda_that_is_missing(
    engine: dict[str, str],
    gpu: bool,
    providers: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    has(monkeypatch, *providers)
    if gpu:
        (tmp_path / "nvidia0").touch()
    with pytest.raises(StackError, match=message) as error:
        refuse_missing_cuda(wished(device="cuda", **engine), tmp_path)
    assert "\n" not in str(error.value)
    refuse_missing_cuda(wished(**engine), tmp_path)


def test_up_goes_on_where_cuda_is_there(tmp_path: Path, monkeypatch: Patch) -> None:
    has(monkeypatch, CUDA, CPU)
    (tmp_path / "nvidia0").touch()
    refuse_missing_cuda(wished(kind="triton", device="cuda"), tmp_path)
