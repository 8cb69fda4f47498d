"""Refuse a stack that is to compute on a GPU where there is none."""

from pathlib import Path

from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve_worker.device import why_no_cuda

_GPUS = ("nvidia0", "nvidiactl", "dxg")
"""In /dev: of the driver, and of Windows' Linux."""


def refuse_missing_cuda(settings: Settings, devices: Path = Path("/dev")) -> None:
    """Return where engine.device asks for nothing that is missing.

    Raises:
        StackError: CUDA is asked for; which of GPU, onnxruntime and engine lacks it, in one line.
    """
    if settings.engine.device != "cuda":
        return
    if "triton" not in settings.engine.kinds:
        raise StackError(
            "engine.device is cuda, which TorchServe does not take: set engine.kind to triton, or "
            "leave engine.device at auto"
        )
    if not any((devices / name).exists() for name in _GPUS):
        raise StackError(
            "engine.device is cuda, and there is no NVIDIA GPU here: set engine.device to cpu or "
            "auto"
        )
    if reason := why_no_cuda():
        raise StackError(f"engine.device is cuda: {reason}")
