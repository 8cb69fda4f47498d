"""Both files of a run as arrays, and the config.json that follows from the training file."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vlserve.errors import DataError, TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.clean_text import clean_text
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Tokenizer, load_tokenizer
from vlserve.training.data import (
    ItemFile,
    count_labels,
    leave_out_other_kind,
    leave_out_trained,
    leave_out_unknown,
    read_items,
    read_questions,
)
from vlserve.training.encoded_features import Encoder, encode
from vlserve.training.json_lines import BadLine, refuse_bad_lines, refuse_mostly_bad
from vlserve.training.options import TrainOptions
from vlserve.training.plan import DataFacts, training_plan
from vlserve.training.samples import (
    OnRead,
    Samples,
    TrainingSamples,
    decode_images,
    to_samples,
)

ANSWER = "answer"
"""The task of those whose titles are questions, and whose labels are the answers."""


@dataclass(frozen=True)
class Dataset:
    """What one run trains and validates on. ``config`` is its config.json."""

    config: dict[str, Any]
    image: ImageInput
    tokenizer: Tokenizer
    train: TrainingSamples
    val: TrainingSamples
    val_labels: Sequence[tuple[str, ...]]
    """Of each validation item, also those that training does not show."""
    multi_label: bool
    bad_lines: tuple[BadLine, ...]

    @property
    def answers(self) -> bool:
        """Whether the titles are questions, and the labels their answers."""
        return bool(self.config.get("task") == ANSWER)


def read_dataset(
    recipe: Recipe,
    train: Path,
    val: Path,
    options: TrainOptions,
    *,
    training: Mapping[str, Any],
    strict: bool,
    on_read: OnRead | None = None,
) -> Dataset:
    """Read and decode both files; labels and titles' facts come from the training file alone.

    Validation items that share an id with a training item are bad lines, and those that have a
    label which it does not show; a question with such answers stays, as in `vlserve evaluate`.
    ``training`` goes into config.json. Raises DataError for a file without a usable line, and for
    any bad one if ``strict``.
    """
    train_file, train_images = decode_images(read_items(train), options.image, on_read)
    label_items = count_labels(train_file.items)
    labels = list(label_items)
    refuse_mostly_bad(train, train_file.used, train_file.bad_lines)
    _check_enough(train_file, labels)
    facts = DataFacts(
        labels=labels,
        multi_label=train_file.multi_label,
        titles=_titles(train_file, options),
        training={**training, "label_items": label_items},
    )
    config = training_plan(recipe).new_config(options, facts)
    if config.get("task") == ANSWER:
        val_file = leave_out_trained(read_questions(val), train_file)
    else:
        val_file = leave_out_other_kind(read_items(val), multi_label=train_file.multi_label)
        val_file = leave_out_unknown(leave_out_trained(val_file, train_file), labels)
    val_file, val_images = decode_images(val_file, options.image, on_read)
    bad_lines = refuse_bad_lines((train_file, val_file), strict=strict)
    image, tokenizer = read_serving(recipe, config)
    return Dataset(
        config=config,
        image=image,
        tokenizer=tokenizer,
        train=to_samples(train_file.items, train_images, tokenizer, labels),
        val=to_samples(val_file.items, val_images, tokenizer, labels),
        val_labels=[item.labels for item in val_file.items],
        multi_label=train_file.multi_label,
        bad_lines=bad_lines,
    )


def encode_dataset(
    data: Dataset, frozen: nn.Module, cache: Path, on_read: OnRead | None = None
) -> Dataset:
    """Return ``data`` as the trained part of a network takes it (`encoded_features`)."""
    assert isinstance(data.train, Samples) and isinstance(data.val, Samples)
    encoder = Encoder(frozen)
    train, val = (encode(encoder, samples, cache, on_read) for samples in (data.train, data.val))
    return replace(data, train=train, val=val)


def read_serving(recipe: Recipe, config: Mapping[str, Any]) -> tuple[ImageInput, Tokenizer]:
    """Return the image size and the tokenizer that an archive of this config serves with."""
    with tempfile.TemporaryDirectory() as folder:
        assets = Path(folder) / "assets"
        assets.mkdir()
        interface = recipe.serve(config, assets)
        if interface.image is None or interface.text is None:
            raise TrainingError(f"{recipe.spec.family} does not take an image and a text")
        return interface.image, load_tokenizer(interface.text, Path(folder))


def _titles(file: ItemFile, options: TrainOptions) -> list[str]:
    titles = [item.text for item in file.items]
    return titles if options.text_cleaning is None else [clean_text(title) for title in titles]


def _check_enough(file: ItemFile, labels: list[str]) -> None:
    if len(labels) < 2 or len(file.items) < 2:
        raise DataError(
            f"{file.path} has {len(labels)} label(s) on {len(file.items)} item(s): "
            "training needs at least two of each"
        )
