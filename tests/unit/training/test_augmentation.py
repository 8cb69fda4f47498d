"""Augmentation: pictures with boxes, texts, presets, items of a run, the sheet of `data look`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_models import EXPORT
from vlserve.data.look.lengths import characters
from vlserve.data.look.page import render_page
from vlserve.data.look.report import look_at
from vlserve.errors import DataError, SettingsError, TrainingError
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.manifest import ImageInput
from vlserve.training.augmentation.images import (
    OPERATIONS,
    Picture,
    blurred,
    cropped,
    flipped,
    jittered,
)
from vlserve.training.augmentation.presets import AUGMENTATIONS, Augmentation, Changes
from vlserve.training.augmentation.texts import (
    changed,
    joined,
    load_translator,
    read_synonyms,
    sides_swapped,
    words_of,
)
from vlserve.training.finetune.item_augmentation import CHANGES, ItemChanges, item_changes
from vlserve.training.finetune.plan import FinetuneOptions
from vlserve.training.finetune.run import dry_run
from vlserve.training.presets import PRESETS

BOX = (0.25, 0.375, 0.5, 0.625)
GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def drawn(box: tuple[float, ...] = BOX) -> Picture:
    """A bright box on black, 80 x 64 pixels."""
    pixels = np.zeros((64, 80, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (round(x * side) for x, side in zip(box, (80, 64, 80, 64), strict=True))
    pixels[y1:y2, x1:x2] = (250, 240, 20)
    return Picture(Image.fromarray(pixels), np.array([box]))


def bright_box(image: Image.Image) -> np.ndarray[Any, Any]:
    """Where the drawn box is now, in shares."""
    points = np.argwhere(np.asarray(image)[:, :, 0] > 190)
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0) + 1
    return np.array([left / 80, top / 64, right / 80, bottom / 64])


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
@pytest.mark.parametrize("seed", range(3))
def test_boxes_follow_what_moves(name: str, seed: int) -> None:
    result = OPERATIONS[name](drawn(), 0.7, np.random.default_rng(seed))
    assert result.boxes[0] == pytest.approx(bright_box(result.image), abs=0.03)
    assert not np.allclose(result.boxes[0], BOX, atol=0.005)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - GEOMETRIC))
def test_boxes_stay_where_colours_change(name: str) -> None:
    result = OPERATIONS[name](drawn(), 0.7, np.random.default_rng(0))
    assert result.boxes[0].tolist() == list(BOX) and result.image.size == (80, 64)


def test_there_are_the_14_operations_of_albef_and_all_but_identity_change_a_photo() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(30, 200, (64, 80, 3)).astype(np.uint8)
    photo = Picture(Image.fromarray(noise), np.zeros((0, 4)))
    same = {
        name
        for name, operation in OPERATIONS.items()
        if np.array_equal(np.asarray(operation(photo, 0.7, random).image), noise)
    }
    assert len(OPERATIONS) == 14 and same == {"identity"}


@pytest.mark.parametrize("seed", range(5))
def test_boxes_follow_a_crop(seed: int) -> None:
    result = cropped(drawn(), (0.6, 0.9), np.random.default_rng(seed))
    assert result.image.size == (80, 64)
    assert result.boxes[0] == pytest.approx(bright_box(result.image), abs=0.04)
    whole = cropped(drawn(), (1.0, 1.0), np.random.default_rng(seed))
    assert whole.boxes[0] == pytest.approx(bright_box(whole.image), abs=0.04)


def test_boxes_follow_a_flip_and_two_undo_each_other() -> None:
    mirror = flipped(drawn())
    assert mirror.boxes[0] == pytest.approx(bright_box(mirror.image), abs=1e-9)
    original = flipped(mirror)
    assert np.array_equal(np.asarray(original.image), np.asarray(drawn().image))
    assert original.boxes[0] == pytest.approx(BOX)


def test_jitter_and_blur_change_colours_alone() -> None:
    random = np.random.default_rng(0)
    for result in (jittered(drawn(), 0.3, random), blurred(drawn(), 1.5)):
        assert result.boxes[0].tolist() == list(BOX)
        assert not np.array_equal(np.asarray(result.image), np.asarray(drawn().image))


def test_sides_are_swapped_as_words() -> None:
    assert sides_swapped("Left of the RIGHT leftover, right.") == (
        "Right of the LEFT leftover, left."
    )
    assert sides_swapped("左边的狗在右边") == "右边的狗在左边"


def test_words_of_chinese_are_characters_and_come_back() -> None:
    text = "红色的 iPhone 15 很好 用"
    assert words_of(text) == ["红", "色", "的", "iPhone", "15", "很", "好", "用"]
    assert joined(words_of(text)) == "红色的iPhone 15很好用"
    assert joined(words_of("a red  ball")) == "a red ball"


def test_eda_keeps_to_the_words_and_their_synonyms() -> None:
    synonyms = {"ball": ["sphere"], "球": ["皮球"]}
    random = np.random.default_rng(0)
    texts = {changed("a red ball rolls down", 0.3, synonyms, random) for _ in range(200)}
    words = {word for text in texts for word in text.split()}
    assert words == {"a", "red", "ball", "rolls", "down", "sphere"} and "" not in texts
    lengths = {len(text.split()) for text in texts}
    assert min(lengths) < 5 < max(lengths)  # left out, and put in
    assert any(sorted(text.split()) == ["a", "ball", "down", "red", "rolls"] for text in texts)
    chinese = {changed("红色的球", 0.3, synonyms, random) for _ in range(100)}
    assert any("皮球" in text for text in chinese) and all(" " not in text for text in chinese)
    assert changed("ball", 0.3, synonyms, random) == "ball"


def test_synonyms_are_read_from_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("dog\thound\tpup\n\n狗\t犬\n", encoding="utf-8")
    assert read_synonyms(file) == {
        **{"dog": ["hound", "pup"], "hound": ["dog", "pup"], "pup": ["dog", "hound"]},
        **{"狗": ["犬"], "犬": ["狗"]},
    }
    file.write_text("dog\thound\nalone\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: alone has no synonym"):
        read_synonyms(file)


def test_a_users_translator_changes_half_of_the_texts(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def translate(texts):\n    return [f'again {x}' for x in texts]\n", encoding="utf-8"
    )
    options = FinetuneOptions(translator=file)
    own = item_changes(options, "retrieve", ImageInput(height=8, width=8))
    assert own is not None
    images, texts = own(torch.zeros(40, 3, 8, 8), ["cat"] * 40, np.random.default_rng(0))
    assert set(texts) == {"cat", "again cat"} and images.shape == (40, 3, 8, 8)
    torch.testing.assert_close(images, torch.zeros(40, 3, 8, 8), atol=0.02, rtol=0)
    file.write_text("def translate(texts):\n    return []\n", encoding="utf-8")
    with pytest.raises(DataError, match="the translator made 0 of"):
        Changes(Augmentation(), translator=load_translator(file)).translated(
            ["cat"] * 40, np.random.default_rng(0)
        )
    file.write_text("translation = 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="no function translate"):
        load_translator(file)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_items_and_draws_by_its_generator(name: str) -> None:
    noise = np.random.default_rng(0).integers(30, 200, (64, 80, 3)).astype(np.uint8)
    text = "the dog to the left of a ball"
    changes = Changes(AUGMENTATIONS[name])  # type: ignore[index]

    def draw(seed: int) -> list[tuple[bytes, str]]:
        random = np.random.default_rng(seed)
        results = [changes.picture(Image.fromarray(noise), text, random) for _ in range(6)]
        return [(picture.image.tobytes(), text) for picture, text in results]

    assert draw(1) == draw(1) != draw(2)
    assert len(set(draw(1))) > 1


def test_a_mirrored_image_says_right_for_left() -> None:
    changes = Changes(Augmentation(flip=True))
    random = np.random.default_rng(0)
    pairs = [changes.picture(drawn().image, "left", random, drawn().boxes) for _ in range(20)]
    sides = {(text, picture.boxes[0, 0] > BOX[0]) for picture, text in pairs}
    assert sides == {("left", False), ("right", True)}


def test_two_images_and_answers_are_never_mirrored() -> None:
    options = FinetuneOptions(augmentation="albef")
    image = ImageInput(height=8, width=8)
    for objective in ("reason", "answer"):
        own = item_changes(options, objective, image)  # type: ignore[arg-type]
        assert own is not None and not own.changes.augmentation.flip
    pairs = ItemChanges(image, Changes(Augmentation(crop=(0.5, 0.6))))
    images = torch.rand(2, 2, 3, 8, 8)
    outputs, _ = pairs(images, ["a", "b"], np.random.default_rng(0))
    assert outputs.shape == images.shape and not torch.allclose(outputs, images, atol=0.1)
    assert item_changes(FinetuneOptions(), "retrieve", image) is None


def test_the_look_shows_a_sheet(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    line = {"id": "a", "img": "a.png", "text": "the dog on the left", "label": "x"}
    (tmp_path / "d.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    report = look_at(
        [tmp_path / "d.jsonl"], tmp_path / "out",
        lengths=characters, unit="characters", max_length=None, predictions=None, workers=1,
    )  # fmt: skip
    plain, page = render_page(report), render_page(report, "blip")
    assert page.count("<figure") == plain.count("<figure") + 6  # the item, and five of it
    assert "changed by blip" in page and "the dog on the right" in page
    with pytest.raises(SettingsError, match="no augmentation x: there are albef"):
        render_page(report, "x")


@pytest.mark.parametrize("family", ["vilbert", "visualbert", "visualbert_coattention", "s2", "m2"])
def test_families_that_learn_from_features_refuse_changes_of_items(
    family: str, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("model.safetensors", "train.jsonl", "val.jsonl")]
    for options, named in (
        ({"augmentation": "eda"}, "augmentation"),
        ({"synonyms": "words.txt", "translator": "words.py"}, "synonyms, translator"),
    ):
        with pytest.raises(SettingsError, match=f"{named}: items of {family} are features"):
            dry_run(load_recipe(family, EXPORT), *files, options=options)


@pytest.mark.parametrize("augmentation", [None, "albef"])
def test_synonyms_that_no_augmentation_would_use_are_refused(
    augmentation: str | None, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("model.safetensors", "train.jsonl", "val.jsonl")]
    options = {"synonyms": "words.txt", "augmentation": augmentation}
    with pytest.raises(SettingsError, match="synonyms: augmentation covers or eda alone"):
        dry_run(load_recipe("albef", EXPORT), *files, options=options)
    with pytest.raises(TrainingError, match="is no JSON object"):
        dry_run(load_recipe("albef", EXPORT), *files, options=options | {"augmentation": "eda"})


def test_presets_change_items_of_images_alone() -> None:
    changing = {each.family for each in PRESETS.values() if set(CHANGES) & set(each.options)}
    assert changing == {"albef", "blip"}
