"""What V2 says of a server and of its models: their inputs and outputs, by task. Pure.

An input that has an alternative (an image, or features of it) is listed beside it; docs/v2.md says
which go together.
"""

import importlib.metadata
from typing import Any

from vlserve.control.domain import ModelRoute
from vlserve.runtime.inputs import takes_text, takes_visual
from vlserve.runtime.manifest import Manifest
from vlserve_worker.v2.messages import BYTES, FP32
from vlserve_worker.v2.outputs import outputs_of

PLATFORM = "vlserve"
EXTENSIONS = ("binary_tensor_data",)

WITHOUT_TEXT = ("caption",)
"""Tasks whose requests bring no text, though the model reads or writes one."""
OF_PAIRS = ("reason",)
"""Tasks whose requests bring two images, or features of both."""

Metadata = dict[str, Any]


def server_metadata() -> Metadata:
    """Return what ``GET /v2`` says."""
    version = importlib.metadata.version("vlserve")
    return {"name": PLATFORM, "version": version, "extensions": EXTENSIONS}


def model_metadata(route: ModelRoute, version: int | None = None) -> Metadata:
    """Return what V2 says of a model, or of one of its versions: of the model the inputs and
    outputs of the version with the most weight, or of the newest where none has any."""
    of = version or max(
        route.versions, key=lambda each: (route.weights.get(each, 0), each), default=None
    )
    manifest = None if of is None else route.manifests.get(of)
    return {
        "name": route.model,
        "versions": [str(each) for each in (route.versions if version is None else [version])],
        "platform": PLATFORM,
        "inputs": _inputs(manifest) if manifest else [],
        "outputs": _outputs(manifest) if manifest else [],
    }


def _inputs(manifest: Manifest) -> list[Metadata]:
    inputs: list[Metadata] = []
    if takes_visual(manifest):
        for suffix in ("", "2") if manifest.task in OF_PAIRS else ("",):
            if manifest.image:
                inputs.append(_tensor(f"image{suffix}", BYTES, (-1,)))
            if manifest.regions:
                inputs.append(_tensor(f"features{suffix}", FP32, (-1, -1, manifest.regions.dim)))
                if manifest.regions.boxes:
                    inputs.append(_tensor(f"boxes{suffix}", FP32, (-1, -1, 4)))
    if takes_text(manifest) and manifest.task not in WITHOUT_TEXT:
        inputs.append(_tensor("text", BYTES, (-1,)))
    return inputs


def _outputs(manifest: Manifest) -> list[Metadata]:
    return [
        _tensor(output.name, output.datatype, output.shape) for output in outputs_of(manifest.task)
    ]


def _tensor(name: str, datatype: str, shape: tuple[int, ...]) -> Metadata:
    return {"name": name, "datatype": datatype, "shape": shape}
