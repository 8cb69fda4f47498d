"""Which device a worker computes on.

An archive's own code takes the GPU where onnxruntime's build has one. So a worker that is to
compute elsewhere says so to onnxruntime and to CUDA, before that code is imported: archives of any
age follow.
"""

import os

CUDA = "CUDAExecutionProvider"


class DeviceMissing(RuntimeError):
    """The device that was asked for is not here."""


def why_no_cuda() -> str | None:
    """Return why onnxruntime cannot compute by CUDA, in one line; None where its build can."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if CUDA in providers:
        return None
    return (
        f"onnxruntime {onnxruntime.__version__} has {', '.join(providers)} and no CUDA: replace it "
        "by onnxruntime-gpu (pip uninstall onnxruntime; pip install 'vlserve[gpu]')"
    )


def choose_device(device: str, number: int = 0) -> None:
    """Have what this process loads from now on compute on a device.

    Args:
        device: "auto" (a GPU where onnxruntime has CUDA), "cpu" or "cuda".
        number: which of the GPUs that this process may see; for "cuda".

    Raises:
        DeviceMissing: CUDA is asked for, and onnxruntime has none.
    """
    if device == "auto":
        return
    if device == "cuda":
        if reason := why_no_cuda():
            raise DeviceMissing(reason)
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(number)
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import onnxruntime

    others = [name for name in onnxruntime.get_available_providers() if name != CUDA]
    onnxruntime.get_available_providers = lambda: others


def _visible(number: int) -> str:
    """Return how CUDA calls the GPU of this number, among those that the process may see."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if number < len(names) else str(number)
