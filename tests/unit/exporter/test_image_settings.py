"""transformers' image settings are read and said; mean and std of another scale are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from vlserve.errors import ExportError
from vlserve.exporter.export import export_archive, read_trained
from vlserve.exporter.image_settings import check_pixel_scale, published_image
from vlserve.exporter.recipe import load_recipe
from vlserve.models.resnet import ResNet, ResNetConfig
from vlserve.runtime.manifest import ImageInput
from vlserve.settings import load_settings

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
CAFFE = [123.675, 116.28, 103.53]


@pytest.mark.parametrize("values", [CAFFE, [127.5] * 3, [1.0, 255.0, 9.0]])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_numbers_of_pixels_up_to_255_are_refused(field: str, values: list[float]) -> None:
    if field == "std" and max(values) <= 1:
        return
    image = ImageInput(height=8, width=8, **{field: values})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=rf"image\.{field} .* from 0 to 255, but .* write \["):
        check_pixel_scale(image)


def test_the_right_numbers_are_offered() -> None:
    image = ImageInput(height=8, width=8, mean=(123.675, 116.28, 103.53))
    with pytest.raises(ExportError, match=r"write \[0\.485, 0\.456, 0\.406\] into config\.json"):
        check_pixel_scale(image)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("mean", [-0.1, 0.5, 0.5]),
        ("mean", [0.5, 0.5, 116.0]),
        ("mean", [300.0, 300.0, 300.0]),
        ("std", [0.0, 0.2, 0.2]),
        ("std", [-0.2, 0.2, 0.2]),
        ("std", [0.2, 0.2, 58.0]),
    ],
)
def test_other_numbers_that_cannot_be_of_0_to_1_are_refused(
    field: str, values: list[float]
) -> None:
    image = ImageInput(height=8, width=8, **{field: values})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=rf"image\.{field} .* cannot be of RGB in 0\.\.1"):
        check_pixel_scale(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_what_is_no_finite_number_is_no_setting(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        ImageInput(height=8, width=8, **{field: [value, 0.5, 0.5]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (MEAN, STD),
        ([0.5] * 3, [0.5] * 3),
        ([0.0] * 3, [1.0] * 3),
        ([127 / 255] * 3, [128 / 255] * 3),
    ],
)
def test_usual_numbers_pass(mean: list[float], std: list[float]) -> None:
    check_pixel_scale(ImageInput(height=8, width=8, mean=mean, std=std))  # type: ignore[arg-type]


def written(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (BLIP, {"height": 384, "width": 384, "mean": MEAN, "std": STD}),
        (BLIP | {"size": 224}, {"height": 224, "width": 224, "mean": MEAN, "std": STD}),
        (
            BLIP | {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
            {"height": 224, "width": 224, "mean": MEAN, "std": STD},
        ),
        (
            BLIP | {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
            {"height": 224, "width": 224, "mean": MEAN, "std": STD},
        ),
        (BLIP | {"do_resize": False}, {"mean": MEAN, "std": STD}),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3},
            {"mean": [0.5] * 3, "std": [0.2] * 3},
        ),
        (
            {"do_normalize": False, "size": {"height": 20, "width": 10}},
            {"height": 20, "width": 10, "mean": [0.0] * 3, "std": [1.0] * 3},
        ),
        ({"do_normalize": False, "do_rescale": False}, {"mean": [0.0] * 3, "std": [1 / 255] * 3}),
        ({"image_mean": 0.5, "image_std": 0.25}, {"mean": [0.5] * 3, "std": [0.25] * 3}),
    ],
)
def test_both_files_of_transformers_are_read(
    content: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    written(tmp_path, "preprocessor_config.json", content)
    image = published_image(tmp_path)
    assert image is not None and image.file == "preprocessor_config.json"
    assert image.fields.keys() == fields.keys()
    assert all(image.fields[name] == pytest.approx(value) for name, value in fields.items())
    written(tmp_path, "processor_config.json", {"image_processor": content, "processor_class": "P"})
    newer = published_image(tmp_path)
    assert newer is not None
    assert (newer.file, newer.fields) == ("processor_config.json", image.fields)


def test_a_processor_without_image_settings_leaves_the_older_file(tmp_path: Path) -> None:
    assert published_image(tmp_path) is None
    written(tmp_path, "processor_config.json", {"processor_class": "BlipProcessor"})
    assert published_image(tmp_path) is None
    written(tmp_path, "preprocessor_config.json", BLIP)
    image = published_image(tmp_path)
    assert image is not None and image.note.startswith(
        "image settings are read from preprocessor_config.json: height 384, width 384, mean [0.48"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "preprocessor_config.json cannot be read"),
        ("[]", "preprocessor_config.json is not a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\noid x\n", "it is a git-lfs pointer, not"),
        ("<!doctype html><html>", r"it is a web page \(HTML\)\. Fetch the file itself"),
        ('{"image_mean": ["a"]}', "image_mean is no list of numbers"),
        ('{"rescale_factor": 0, "image_mean": [1]}', "image_mean is no list of numbers"),
        ('{"do_flip_channel_order": true}', "order BGR; only RGB is read"),
    ],
)
def test_settings_that_are_not_read_are_refused(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match=reason):
        published_image(tmp_path)


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_file(ResNet(ResNetConfig(layers=(1,), width=4)).state_dict(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_export_takes_the_published_settings_under_its_own(resnet: Path) -> None:
    written(resnet.parent, "config.json", {"image": {"height": 40}})
    written(resnet.parent, "preprocessor_config.json", BLIP | {"size": 48})
    source = read_trained("resnet", resnet, None, load_settings())
    image = source.config["image"]
    assert (image["height"], image["width"]) == (40, 48)
    assert (list(image["mean"]), list(image["std"])) == (MEAN, STD)
    assert source.notes == (
        f"image settings are read from preprocessor_config.json: height 48, width 48, "
        f"mean {MEAN}, std {STD}",
    )


def test_export_refuses_a_mean_of_another_scale(resnet: Path, tmp_path: Path) -> None:
    written(resnet.parent, "config.json", {"image": {"mean": CAFFE}})
    with pytest.raises(ExportError, match=r"image\.mean .* from 0 to 255"):
        export_archive("resnet", resnet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["visualbert", "resnet_gru", "vilbert", "s2"])
def test_a_family_without_such_files_reads_none(name: str) -> None:
    assert not load_recipe(name, load_settings().folder("export")).spec.reads_image_settings
