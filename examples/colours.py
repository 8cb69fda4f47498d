"""Colours: a tag from the mean colour of the cover and the characters of the title."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.families.examples import example_inputs
from vlserve.runtime.manifest import ImageInput, TensorSpec, TextInput

CHARACTERS = 128  # ASCII; id 0 is padding, and what is unknown
IMAGE = ImageInput(height=32, width=32)
INPUTS = (
    TensorSpec(name="image", dtype="float32", dims=("batch", 3, IMAGE.height, IMAGE.width)),
    TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
    TensorSpec(name="text_mask", dtype="int64", dims=("batch", "text")),
)


class Colours(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(CHARACTERS, labels)
        self.colour = nn.Linear(3, labels)

    def forward(self, image: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        words = self.words(text_ids) * text_mask.unsqueeze(2)  # (batch, text, labels)
        logits: Tensor = self.colour(image.mean(dim=(2, 3))) + words.sum(dim=1)
        return logits  # (batch, labels)


class ColoursRecipe:
    spec = Spec(family="colours", tasks=("tag",), reads=("what torch.save wrote below",))

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        return dict(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Colours(len(config["labels"]))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        ids = {chr(code): code for code in range(1, CHARACTERS)}
        (assets / "characters.json").write_text(json.dumps(ids), encoding="utf-8")
        text = TextInput(
            tokenizer="characters", file="assets/characters.json", max_length=15, pad_to_max=False
        )
        return Served(task="tag", image=IMAGE, text=text, labels=tuple(config["labels"]))

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", len(config["labels"])))
        return {"model": GraphPlan(network, INPUTS, (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        return example_inputs(INPUTS, sizes, seed, CHARACTERS)


RECIPE = ColoursRecipe()
