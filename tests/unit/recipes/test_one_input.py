"""A model of images alone and one of texts alone, from the recipe to the answer and the figures."""

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from support import one_input_recipe
from support.one_input_recipe import LABELS, RECIPE
from vlserve.cli import app
from vlserve.exporter.convert import Converter, Format
from vlserve.exporter.export import export_archive
from vlserve.exporter.probes import drawn_image
from vlserve.quantize.items import requests_of
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.types import ItemError, Request
from vlserve.training.evaluate import evaluate_archive

RECIPE_FILE = Path(one_input_recipe.__file__)
FIELDS: dict[str, dict[str, Any]] = {"image": {"image": drawn_image(1)}, "text": {"text": "abc"}}
OTHER = {"image": "text", "text": "image"}
each_kind = pytest.mark.parametrize("takes", FIELDS)


def write_checkpoint(folder: Path, takes: str) -> Path:
    torch.manual_seed(0)
    (folder / "config.json").write_text(json.dumps({"takes": takes}), encoding="utf-8")
    torch.save(RECIPE.build({"takes": takes}).state_dict(), folder / "model.pth")
    return folder / "model.pth"


Export = Callable[[str, Format], Path]


@pytest.fixture(scope="module")
def export(converter: Converter, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The archive of a model that takes one input; exported once for the same arguments."""

    @cache
    def export(takes: str, format: Format) -> Path:
        folder = tmp_path_factory.mktemp(f"{takes}-{format}")
        checkpoint = write_checkpoint(folder, takes)
        return export_archive(
            str(RECIPE_FILE), checkpoint, folder / "out", format=format, converter=converter
        ).path

    return export


def opened(archive: Path, folder: Path) -> Pipeline:
    unpack_archive(archive, folder)
    return open_folder(folder)


@each_kind
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_it_answers_what_it_takes_and_refuses_the_rest(
    takes: str, format: Format, export: Export, tmp_path: Path
) -> None:
    archive = export(takes, format)
    manifest = verify_archive(archive)
    assert len(manifest.probes) >= 3
    assert all(set(probe.fields) == {takes} for probe in manifest.probes)
    pipeline = opened(archive, tmp_path / "unpacked")
    good, other = FIELDS[takes], FIELDS[OTHER[takes]]
    requests = [good, {**good, **other}, {}, {**good, "surprise": 1}, {**good, "top_k": 1}]
    answers = pipeline.run([Request(fields) for fields in requests]).answers
    assert isinstance(answers[0], dict) and isinstance(answers[4], dict)
    assert {tag["tag"] for tag in answers[0]["tags"]} == set(LABELS)
    assert answers[4]["tags"] == answers[0]["tags"][:1]
    requirement = "image: Field required" if takes == "image" else "text: Field required"
    messages = {
        1: f"{OTHER[takes]}: this model takes no {OTHER[takes]}",
        2: requirement,
        3: "surprise: Extra inputs are not permitted",
    }
    for place, message in messages.items():
        assert answers[place] == ItemError(ErrorCode.FIELD_INVALID, message)


@pytest.mark.export
def test_the_command_exports_a_model_of_images_alone(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, "image")
    words = ["export", str(RECIPE_FILE), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    words += ["--format", "torchscript"]  # a process of its own begins sooner with it
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    pipeline = opened(tmp_path / "one_input-1.mar", tmp_path / "unpacked")
    (answer,) = pipeline.run([Request(FIELDS["image"])]).answers
    assert isinstance(answer, dict) and len(answer["tags"]) == len(LABELS)


@pytest.mark.parametrize("takes", ["image", pytest.param("text", marks=pytest.mark.long)])
def test_its_items_need_no_more_than_it_takes(takes: str, export: Export, tmp_path: Path) -> None:
    archive = export(takes, "onnx")
    (tmp_path / "cover.png").write_bytes(base64.b64decode(drawn_image(1)))
    fields = {"img": "cover.png"} if takes == "image" else {"text": "abc"}
    lines = [{"id": str(place), "label": "red", **fields} for place in range(3)]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = evaluate_archive(archive, data)
    assert len(result.predictions) == 3 and not result.bad_lines
    manifest = verify_archive(archive)
    request = {"image_path": "cover.png"} if takes == "image" else {"text": "abc"}
    whole = {"id": "1", "img": "cover.png", "text": "abc", "label": "red"}
    assert requests_of(lines[0], manifest) == requests_of(whole, manifest) == [request]
