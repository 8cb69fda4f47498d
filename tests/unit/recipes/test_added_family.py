"""A family is added by one file, wherever it lies, as examples/colours.py for CONTRIBUTING.md."""

import base64
from pathlib import Path

import numpy as np
import torch

from support.example_recipe import NAME, export_example
from support.tiny_models import PROJECT
from vlserve.exporter.convert import Converter
from vlserve.exporter.export import read_trained
from vlserve.exporter.probes import drawn_image
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.image import decode
from vlserve.runtime.types import Request
from vlserve.settings import Settings

TITLES = ("a red door", "x", "green " * 9)


def test_it_is_exported_and_answers_like_its_network(converter: Converter, tmp_path: Path) -> None:
    report = export_example(tmp_path, converter)
    assert (report.manifest.family, report.manifest.task) == (NAME, "tag")
    assert report.path.name == f"{NAME}-1.mar"

    unpack_archive(report.path, tmp_path / "unpacked")
    pipeline = open_folder(tmp_path / "unpacked")
    image = drawn_image(1)
    requests = [Request({"image": image, "text": title, "top_k": 3}) for title in TITLES]
    answers = pipeline.run(requests).answers

    recipe, checkpoint = tmp_path / f"{NAME}.py", tmp_path / f"{NAME}.pth"
    settings = Settings(project_dir=PROJECT)
    network = read_trained(str(recipe), checkpoint, None, settings).network
    spec = report.manifest.image
    assert spec is not None
    pixels = torch.from_numpy(decode(base64.b64decode(image), spec))[None]
    for title, answer in zip(TITLES, answers, strict=True):
        ids = torch.tensor([[ord(character) for character in title[:15]]])
        with torch.inference_mode():
            shares = network(pixels, ids, torch.ones_like(ids))[0].softmax(0)
        expected = dict(zip(report.manifest.labels, shares.tolist(), strict=True))
        assert isinstance(answer, dict)
        scores = {tag["tag"]: tag["score"] for tag in answer["tags"]}
        assert list(scores) == sorted(expected, key=lambda label: -expected[label])
        np.testing.assert_allclose(
            [scores[label] for label in expected], list(expected.values()), atol=1e-5
        )
