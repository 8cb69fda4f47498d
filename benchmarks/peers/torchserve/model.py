"""The eager network as TorchServe's documentation asks for it: a file with one class."""

import json
from pathlib import Path

from resnet_gru import ResNetGRU, parse  # export/resnet_gru.py, an extra file of the archive


class Tagger(ResNetGRU):
    def __init__(self) -> None:
        super().__init__(
            parse(json.loads(Path(__file__).with_name("config.json").read_text(encoding="utf-8")))
        )
