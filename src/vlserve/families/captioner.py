"""What the recipes of word-by-word captioners share: config.json, its files, what is served."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.recipe import Served
from vlserve.families.config_file import check_against_tensors, read_names
from vlserve.families.grid import GridConfig, complete_grid, grid_state
from vlserve.models.captioning import LayerSizes
from vlserve.models.keys import check_keys, count_layers, is_ignored
from vlserve.runtime.manifest import RegionInput

HEADS = 8
"""Of every published captioner; a checkpoint does not show its heads."""
WORDS = "words.json"
BUFFERS = (
    r"decoder\.running_(mask_self_attention|seq)",
    r"decoder\.layers\.\d+\.self_att\.running_(keys|values)",
)
"""Keys of what the original remembers while it writes; empty in a checkpoint."""


class Writing(BaseModel):
    """Rules of the beam search; ``max_length`` counts the start and the end too. As in the
    original's evaluation: 20 words, and of words that follow themselves one is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beams: int = Field(default=5, ge=1)
    max_length: int = Field(default=21, ge=2)
    merge_repeats: bool = True


class CaptionerConfig(BaseModel):
    """A config.json, completed. There, what the tensors show may be left out: encoder, decoder,
    positions, features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["caption"] = "caption"
    words: tuple[str, ...]
    """By id; in the file also the name of a JSON file beside it."""
    pad_id: int = Field(default=1, ge=0)
    start_id: int = Field(default=2, ge=0)
    end_id: int = Field(default=3, ge=0)
    heads: int = Field(default=HEADS, ge=1)
    writing: Writing = Writing()
    grid: GridConfig | None = None
    encoder: LayerSizes
    decoder: LayerSizes
    positions: int = Field(ge=2)
    features: int = Field(ge=1)
    """Numbers in each row of the visual features."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if max(self.pad_id, self.start_id, self.end_id) >= len(self.words):
            raise ValueError(f"an id of pad, start or end is not below {len(self.words)} words")
        if self.writing.max_length > self.positions:
            raise ValueError(f"writing.max_length is over the {self.positions} positions")
        if self.grid and self.grid.dim != self.features:
            raise ValueError(
                f"the grid has {self.grid.dim} features a cell, the network reads {self.features}"
            )
        return self


def complete(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    folder: Path,
    family: str,
    parts: tuple[str, ...],
    show: Callable[[Mapping[str, Tensor]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return ``config`` with what the tensors show filled in, and the files that it names read.

    Every key of ``state`` must begin with one of ``parts``; ``show`` gives the family's own fields.
    CheckpointMismatch for another family's tensors, or where config.json says otherwise than they
    do.
    """
    unexpected_keys = [name for name in state if not name.startswith(parts)]
    heads = config.get("heads", HEADS)
    try:
        words, _ = state["decoder.word_emb.weight"].shape
        sizes = {
            "encoder": _layer_sizes(state, "encoder.layers", "mhatt", heads),
            "decoder": _layer_sizes(state, "decoder.layers", "self_att", heads),
            "positions": state["decoder.pos_emb.weight"].shape[0],
            "features": state["encoder.fc.weight"].shape[1],
            **show(state),
        }
    except KeyError as error:
        check_keys(family, [str(error.args[0])], unexpected_keys)
        raise
    check_keys(family, [], unexpected_keys)
    check_against_tensors(config, sizes)
    vocabulary = _read_words(config.get("words", WORDS), folder)
    if len(vocabulary) != words:
        raise CheckpointMismatch(f"words: there are {len(vocabulary)}, the checkpoint has {words}")
    full_config = {**config, **sizes, "words": vocabulary}
    if config.get("grid") is not None:
        full_config["grid"] = complete_grid(config["grid"], folder)
    return full_config


def _layer_sizes(
    state: Mapping[str, Tensor], layers: str, attention: str, heads: int
) -> dict[str, Any]:
    """Return the fields of LayerSizes. KeyError for a tensor that a layer must have."""
    first = f"{layers}.0.{attention}.attention"
    keys, hidden = state[f"{first}.fc_k.weight"].shape
    values = state[f"{first}.fc_v.weight"].shape[0]
    if not isinstance(heads, int) or heads < 1:
        raise ExportError(f"config.json: heads must be a whole number, not {repr(heads)[:50]}")
    if keys % heads or values % heads:
        raise ExportError(f"heads: {heads} do not divide the {keys} keys and {values} values")
    return {
        "layers": count_layers(state, f"{layers}."),
        "hidden": hidden,
        "heads": heads,
        "key_size": keys // heads,
        "value_size": values // heads,
        "intermediate": state[f"{layers}.0.pwff.fc1.weight"].shape[0],
    }


def _read_words(value: Any, folder: Path) -> list[Any]:
    """Return a list of words, an object from index to word, or the name of a file of either."""
    if isinstance(value, str):
        value = read_names(folder / value, "words")
    if isinstance(value, Mapping):
        try:
            return [value[str(index)] for index in range(len(value))]
        except KeyError as error:
            raise ExportError(f"words: no word has the index {error}") from error
    if not isinstance(value, list | tuple):
        raise ExportError("words must be a list, an object from index to word, or a file's name")
    return list(value)


def without_ignored(state: Mapping[str, Tensor], patterns: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not is_ignored(name, patterns)}


def with_grid(state: dict[str, Tensor], config: CaptionerConfig) -> dict[str, Tensor]:
    """Return ``state`` and the ResNet's tensors, where config.json names one."""
    return state | grid_state(config.grid) if config.grid else state


def served(config: CaptionerConfig, max_regions: int, assets: Path) -> Served:
    """Write the words into ``assets``, and return what is served."""
    (assets / WORDS).write_text(json.dumps(config.words, indent=0) + "\n", encoding="ascii")
    return Served(
        task=config.task,
        image=config.grid.image if config.grid else None,
        regions=RegionInput(dim=config.features, max_regions=max_regions),
        options={
            "words": f"assets/{WORDS}",
            "prompt_ids": [config.start_id],
            "end_id": config.end_id,
            "min_length": 0,
            "length_penalty": 0.0,
            "finished": "stay",
            **config.writing.model_dump(),
        },
    )
