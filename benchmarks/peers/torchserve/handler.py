"""The handler that TorchServe's documentation leads to: BaseHandler with its three steps."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from ts.torch_handler.base_handler import BaseHandler

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


class TaggerHandler(BaseHandler):
    def initialize(self, context: Any) -> None:
        super().initialize(context)
        folder = Path(context.system_properties["model_dir"])
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def preprocess(self, data: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        ids = [self._ids(row["text"].decode()) for row in data]
        images = torch.stack([self._image(row["image"]) for row in data])
        lengths = torch.tensor([len(row_ids) for row_ids in ids])
        return images, pad_sequence(ids, batch_first=True), lengths

    def inference(self, data: tuple[Tensor, Tensor, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.model(*data)
        return logits

    def postprocess(self, data: Tensor) -> list[dict[str, Any]]:
        labels = self.config["labels"]
        answers = []
        for row in torch.softmax(data, dim=1):
            scores, indices = row.topk(5)
            pairs = zip(indices.tolist(), scores.tolist(), strict=True)
            answers.append(
                {"tags": [{"tag": labels[index], "score": score} for index, score in pairs]}
            )
        return answers

    def _image(self, data: bytes) -> Tensor:
        """(3, height, width)."""
        size = (self.config["image"]["width"], self.config["image"]["height"])
        image = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - MEAN) / STD

    def _ids(self, text: str) -> Tensor:
        """(characters,)."""
        vocabulary, unknown = self.config["vocabulary"], self.config["unknown_id"]
        indices = [vocabulary.get(character, unknown) for character in text.lower()]
        return torch.tensor(indices[: self.config["max_length"]])
