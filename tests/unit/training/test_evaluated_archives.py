"""A tiny archive of every task is measured end to end; what it should say, eager mode says.

Labels are made of eager answers, so that every figure is known before.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from support.eager_answers import Eager, eager_of
from support.questions import Look, Question, look_at, npy
from support.tiny_kinds import in_tiers
from support.tiny_models import PROJECT, Archives
from vlserve.cli import app
from vlserve.exporter.echo import LABELS, pack_echo
from vlserve.exporter.export import read_trained
from vlserve.settings import Settings
from vlserve.training.demo_data import write_demo_data
from vlserve.training.evaluate import evaluate_archive
from vlserve.training.evaluators import evaluate

pytestmark = pytest.mark.training

TEXTS = ("cat", "a red ball", "dogs red a", "red cat")
FORMAT = "onnx"
pytestmark = pytest.mark.timeout(600)  # an archive may wait for the exports of all others


class Set:
    """A JSONL file being written: what eager mode is asked, and the items about it."""

    def __init__(self, folder: Path, archives: Archives, name: str) -> None:
        self.report = archives.report(name, FORMAT)
        self.folder = folder
        model, settings = archives.models[name], Settings(project_dir=PROJECT)
        checkpoint = read_trained(model.recipe, archives.checkpoint(name), None, settings)
        self.eager: Eager = eager_of(checkpoint, folder)

    def looks(self, count: int, first: int = 0) -> list[Look]:
        return [look_at(self.report.manifest, first + 2 * seed) for seed in range(count)]

    def shown(self, look: Look, name: str, suffix: str = "") -> dict[str, Any]:
        """The files of a look, and what an item says of them."""
        item: dict[str, Any] = {}
        if look.image is not None:
            item[f"img{suffix}"] = f"{name}.image"
            (self.folder / f"{name}.image").write_bytes(look.image)
        if look.features is not None:
            item[f"features{suffix}"] = f"{name}.npy"
            (self.folder / f"{name}.npy").write_bytes(npy(look.features))
        if look.boxes is not None:
            item[f"boxes{suffix}"] = look.boxes.tolist()
        return item

    def evaluated(self, items: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Figures of these lines, to which a broken one is added."""
        data = self.folder / "items.jsonl"
        lines = [json.dumps({"id": str(at), **item}) for at, item in enumerate(items)]
        data.write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
        messages: list[str] = []
        result = evaluate(self.report.path, data, progress=messages.append, **options)
        assert [bad.line for bad in result.bad_lines] == [len(lines) + 1]
        assert result.figures["items"] == len(items) and messages
        return dict(result.figures)


MakeSet = Callable[[str], Set]


@pytest.fixture
def make_set(tmp_path: Path, archives: Archives) -> MakeSet:
    return lambda name: Set(tmp_path, archives, name)


@pytest.mark.parametrize(("name", "format"), in_tiers([("blip-answer", FORMAT)]))
def test_answer(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, (look, text) in enumerate(zip(data.looks(4), TEXTS, strict=True)):
        answer = data.eager.answer(Question((look,), text))["answers"][0]["answer"]
        label = [answer, "nothing"] if at % 2 else ["nothing"]
        items.append({**data.shown(look, str(at)), "text": text, "label": label})
    assert data.evaluated(items)["accuracy"] == 0.5


@pytest.mark.parametrize(("name", "format"), in_tiers([("vilbert-entail", FORMAT)]))
def test_entail(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, (look, text) in enumerate(zip(data.looks(4), TEXTS, strict=True)):
        order = list(data.eager.answer(Question((look,), text))["scores"])
        items.append({**data.shown(look, str(at)), "text": text, "label": order[at == 3]})
    assert data.evaluated(items)["accuracy"] == 0.75


@pytest.mark.parametrize(("name", "format"), in_tiers([("albef-reason", FORMAT)]))
def test_reason(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, (look, text) in enumerate(zip(data.looks(4), TEXTS, strict=True)):
        other = look_at(data.report.manifest, 20 + at)
        answer = data.eager.answer(Question((look, other), text))["answer"]
        fields = data.shown(look, f"left{at}") | data.shown(other, f"right{at}", "2")
        items.append({**fields, "text": text, "label": bool(answer) != (at == 0)})
    assert data.evaluated(items)["accuracy"] == 0.75


@pytest.mark.parametrize(("name", "format"), in_tiers([("blip-caption", FORMAT)]))
def test_caption(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, look in enumerate(data.looks(2)):
        caption = data.eager.answer(Question((look,), None))["caption"]
        captions = ["nothing of that kind", caption]
        items.append({**data.shown(look, str(at)), "captions": captions})
    figures = data.evaluated(items)
    assert (figures["bleu_1"], figures["rouge_l"]) == pytest.approx((1, 1), abs=1e-6)
    assert figures.keys() >= {"bleu_4", "meteor", "cider_d"}


def pairs_of(data: Set, count: int) -> tuple[list[Look], list[str], list[dict[str, Any]]]:
    looks, texts = data.looks(count), list(TEXTS[:count])
    items = [
        {**data.shown(look, str(at)), "captions": [texts[at]]} for at, look in enumerate(looks)
    ]
    return looks, texts, items


def share_found(scores: Any) -> float:
    """Of rows whose own place, the diagonal, is the highest."""
    return float(np.mean(np.argmax(scores, axis=1) == np.arange(len(scores))))


def cosines_of(data: Set, looks: list[Look], texts: list[str]) -> Any:
    rows = [data.eager.run("image", data.eager.looks(Question((look,), None))) for look in looks]
    columns = [data.eager.run("text", data.eager.text(Question((), text))) for text in texts]
    images = np.concatenate([output["image_embedding"] for output in rows])
    return images @ np.concatenate([output["text_embedding"] for output in columns]).T


@pytest.mark.parametrize(("name", "format"), in_tiers([("blip-embed", FORMAT)]))
def test_embed(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    looks, texts, items = pairs_of(data, 4)
    cosines = cosines_of(data, looks, texts)
    figures = data.evaluated(items)
    assert figures["image_to_text_r1"] == share_found(cosines)
    assert figures["text_to_image_r1"] == share_found(cosines.T)
    assert figures["image_to_text_r5"] == figures["text_to_image_r5"] == 1


@pytest.mark.parametrize(
    ("name", "format"), in_tiers([("albef-match", FORMAT), ("vilbert-match", FORMAT)])
)
def test_match(name: str, format: str, make_set: MakeSet) -> None:
    """One model ranks by cosine first, the other has no common space."""
    data = make_set(name)
    looks, texts, items = pairs_of(data, 3)
    scores = np.array(
        [
            [data.eager.answer(Question((look,), text))["itm_score"] for text in texts]
            for look in looks
        ]
    )
    figures = data.evaluated(items)
    before = "reranked_" if name == "albef-match" else ""
    assert figures[f"{before}image_to_text_r1"] == share_found(scores)
    assert figures[f"{before}text_to_image_r1"] == share_found(scores.T)
    if before:
        assert figures["image_to_text_r1"] == share_found(cosines_of(data, looks, texts))


@pytest.mark.parametrize(("name", "format"), in_tiers([("vilbert-ground", FORMAT)]))
def test_ground_by_regions(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, (look, text) in enumerate(zip(data.looks(2, first=1), TEXTS, strict=False)):
        x1, y1, x2, y2 = data.eager.answer(Question((look,), text))["regions"][0]["box"]
        box = [x1, y1, x1 + (x2 - x1) * (0.25 if at else 1), y2]
        items.append({**data.shown(look, str(at)), "text": text, "box": box})
    figures = data.evaluated(items)
    assert figures["accuracy_iou_50"] == 0.5
    assert figures["mean_iou"] == pytest.approx((1 + 0.25) / 2, abs=1e-4)


@pytest.mark.parametrize(("name", "format"), in_tiers([("albef-ground", FORMAT)]))
def test_ground_by_a_heat_map(name: str, format: str, make_set: MakeSet) -> None:
    data = make_set(name)
    items = []
    for at, (look, text) in enumerate(zip(data.looks(4), TEXTS, strict=True)):
        peak = data.eager.answer(Question((look,), text))["peak"]
        x, y = (peak["x"], peak["y"]) if at else (peak["x"], (peak["y"] + 0.5) % 1)
        box = [max(0, x - 0.1), max(0, y - 0.1), min(1, x + 0.1), min(1, y + 0.1)]
        items.append({**data.shown(look, str(at)), "text": text, "box": box})
    items[1]["boxes"] = [items[1]["box"]]
    figures = data.evaluated(items)
    assert figures["pointing_accuracy"] == 0.75
    assert figures["box_items"] == 1 and figures["mean_iou"] == pytest.approx(1)


def test_tag_and_the_command(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path / "drawn", items=54, seed=3)
    archive = pack_echo(tmp_path, "echo", 1, labels=data.labels or LABELS)
    evaluation = evaluate_archive(archive, data.val)
    result = CliRunner().invoke(app, ["evaluate", str(archive), "--data", str(data.val), "--json"])
    assert result.exit_code == 0, result.output
    output = json.loads(result.stdout)
    assert output.pop("bad_lines") == []
    assert output == evaluation.metrics.to_json()
