"""A recipe for tests: a tagger that takes an image alone, or a text alone, as its config says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.runtime.manifest import ImageInput, TensorSpec, TextInput

LABELS = ("red", "green", "blue")
INPUTS = {
    "image": TensorSpec(name="image", dtype="float32", dims=("batch", 3, 16, 16)),
    "text": TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
}


class MeanColour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(len(LABELS)))

    def forward(self, image: Tensor) -> Tensor:
        """image (batch, 3, 16, 16) -> logits (batch, labels)."""
        return image.mean(dim=(2, 3)) * self.scale


class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, len(LABELS), padding_idx=0)

    def forward(self, text_ids: Tensor) -> Tensor:
        """text_ids (batch, text) -> logits (batch, labels)."""
        return torch.as_tensor(self.embedding(text_ids).sum(dim=1))


class OneInputRecipe:
    spec = Spec(family="one_input", tasks=("tag",))

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        return dict(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return MeanColour() if config["takes"] == "image" else Letters()

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        if config["takes"] == "image":
            return Served("tag", image=ImageInput(height=16, width=16), labels=LABELS)
        file = assets / "characters.json"
        file.write_text(
            "{" + ", ".join(f'"{chr(i)}": {i}' for i in range(97, 123)) + "}", encoding="utf-8"
        )
        text = TextInput(tokenizer="characters", file=f"assets/{file.name}", max_length=15)
        return Served("tag", text=text, labels=LABELS)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", len(LABELS)))
        return {"model": GraphPlan(network, (INPUTS[config["takes"]],), (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(seed)
        if config["takes"] == "image":
            return {"image": torch.randn(sizes["batch"], 3, 16, 16, generator=random)}
        ids = torch.randint(97, 123, (sizes["batch"], sizes["text"]), generator=random)
        ids[0, -1] = 0
        return {"text_ids": ids}


RECIPE = OneInputRecipe()
