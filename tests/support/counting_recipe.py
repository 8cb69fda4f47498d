"""A recipe for tests: each label's logit from the characters of the title, and a faulty sister.

With ``"baked_in": true`` in config.json the network reads the text's length as a plain number, the
way in which tracing bakes a length into a graph.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.runtime.manifest import ImageInput, TensorSpec, TextInput

LABELS = ("short", "long", "loud")
SIDE = 16


class Counting(nn.Module):
    def __init__(self, baked_in: bool) -> None:
        super().__init__()
        self.baked_in = baked_in
        self.embedding = nn.Embedding(8, len(LABELS))

    def forward(self, image: Tensor, text_ids: Tensor) -> Tensor:
        """image (batch, 3, SIDE, SIDE), text_ids (batch, text) -> logits (batch, labels)."""
        vectors: Tensor = self.embedding(text_ids)
        if self.baked_in:
            vectors = vectors[:, torch.arange(int(text_ids.shape[1]))]
        return vectors.sum(dim=1) + image.mean(dim=(1, 2, 3)).unsqueeze(1)


class CountingRecipe:
    spec = Spec(family="counting", tasks=("tag",))

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        return dict(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Counting(config.get("baked_in", False))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return dict(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        (assets / "vocabulary.json").write_text('{"a": 1, "b": 2}', encoding="utf-8")
        text = TextInput(tokenizer="characters", file="assets/vocabulary.json", max_length=15)
        return Served("tag", ImageInput(height=SIDE, width=SIDE), text, labels=LABELS)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        inputs = (
            TensorSpec(name="image", dtype="float32", dims=("batch", 3, SIDE, SIDE)),
            TensorSpec(name="text_ids", dtype="int64", dims=("batch", "text")),
        )
        logits = TensorSpec(name="logits", dtype="float32", dims=("batch", len(LABELS)))
        return {"model": GraphPlan(network, inputs, (logits,))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 8, (sizes["batch"], sizes["text"]), generator=random)
        ids[0, -1] = 0
        image = torch.randn(sizes["batch"], 3, SIDE, SIDE, generator=random)
        return {"image": image, "text_ids": ids}


RECIPE = CountingRecipe()
