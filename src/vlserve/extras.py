"""The optional parts of an installation, and what to say where one is missing."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from vlserve.errors import ExtraMissing

MODULES: Mapping[str, Sequence[str]] = {
    "cpu": ("onnxruntime",),
    "batch": ("pyarrow",),
    "cluster": ("ray",),
    "video": ("av",),
    "labels": ("cleanlab",),
    "train": (
        *("onnxscript", "transformers", "sklearn", "pycocoevalcap", "pycocotools"),
        "pytorch_optimizer",
    ),
    "tensorboard": ("tensorboard",),
}
"""What each extra brings that nothing else does. The extra gpu brings what cpu does."""


def require_extras(*extras: str) -> None:
    """Raise ExtraMissing for the first of ``extras`` that is not installed; imports nothing."""
    for extra in extras:
        for module in MODULES[extra]:
            if find_spec(module) is None:
                raise ExtraMissing(missing_extra(extra, module))


def extra_of(module: str | None) -> str | None:
    """Return the extra that brings an absent module (``a.b.c`` is of package ``a``); None where no
    extra does."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, modules in MODULES.items() if package in modules), None)


def missing_extra(extra: str, module: str) -> str:
    """Return one line that names the missing extra and the command that installs it."""
    instead = " (with a GPU: 'vlserve[gpu]')" if extra == "cpu" else ""
    return (
        f"this needs the extra `{extra}`, which brings {module}: "
        f"pip install 'vlserve[{extra}]'{instead}"
    )
