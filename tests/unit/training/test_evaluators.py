"""Each task's figures, of answers made by hand."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlserve.errors import DataError
from vlserve.runtime.manifest import Graph, Manifest, RegionInput, TensorSpec
from vlserve.training.evaluators import EVALUATORS, retrieval
from vlserve.training.evaluators.items import CaptionItem, PairedItem, read_task_file
from vlserve.training.evaluators.job import Job, Result

HANDLERS = Path(__file__).parents[3] / "handlers"
Fields = dict[str, Any]
Answering = Callable[[Fields], Any]
Evaluate = Callable[..., Result]


def manifest_of(task: str, outputs: Iterable[str] = ("logits",), **more: Any) -> Manifest:
    """Of a model whose graphs nobody runs."""
    tensors = tuple(TensorSpec(name=name, dtype="float32", dims=("batch", 2)) for name in outputs)
    graphs = {
        name: Graph(file="g", format="echo", inputs=(), outputs=tensors)
        for name in more.pop("graphs", ("model",))
    }
    files = ["g", f"handlers/{task}.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json"]
    return Manifest(
        model="m",
        version=1,
        task=task,
        family="hand",
        graphs=graphs,
        files=dict.fromkeys(files, "0" * 64),
        **more,
    )


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs a task's evaluator on lines; ``says`` answers a request's fields, a string refuses."""

    def run(manifest: Manifest, lines: Iterable[Any], says: Answering, **more: Any) -> Result:
        def answers(
            archive: Path, items: Iterable[Fields], batch_size: int, **rest: Any
        ) -> Iterator[dict[str, Any]]:
            for item in items:
                answer = says(item["fields"])
                error = {"code": "FIELD_INVALID", "message": answer}
                yield {"error": error} if isinstance(answer, str) else {"answer": answer}

        monkeypatch.setattr("vlserve.training.evaluators.job.answer_offline", answers)
        data = tmp_path / "items.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return EVALUATORS[manifest.task](Job(tmp_path / "m.mar", manifest, data, **more))

    return run


def test_every_task_is_measured() -> None:
    tasks = {file.stem for file in HANDLERS.glob("*.py")} - {"torchserve_handler", "triton_model"}
    own = {"retrieve": "measured by the model that it is of", "adopted": "answers anything"}
    assert EVALUATORS.keys() == tasks - own.keys()


def test_answers(evaluate: Evaluate) -> None:
    ten = ["red"] * 2 + ["blue"] * 8
    lines = [
        {"id": "1", "img": "a.jpg", "text": "red", "label": ten},
        {"id": "2", "img": "a.jpg", "text": "two", "label": ["2", "3"]},
        {"id": "3", "img": "a.jpg", "text": "cat", "label": "dog"},
        {"id": "4", "img": "a.jpg", "text": "bad", "label": ["dog"]},
        {"id": "5", "img": "a.jpg", "text": "no label"},
        {"id": "6", "img": "a.jpg", "text": "none", "label": []},
    ]

    def says(fields: Fields) -> Any:
        assert fields["top_k"] == 1 and Path(fields["image_path"]).name == "a.jpg"
        text = fields["text"]
        return "no" if text == "bad" else {"answers": [{"answer": text, "score": 1.0}]}

    result = evaluate(manifest_of("answer"), lines, says)
    figures = dict(result.figures)
    assert figures["items"] == 3 and figures["vqa_items"] == 1
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["vqa_accuracy"] == pytest.approx((2 / 3 + 8 * 2 / 3) / 10)
    assert list(figures["intervals_95"]) == ["accuracy"]
    assert [bad.line for bad in result.bad_lines] == [4, 5, 6]
    assert "FIELD_INVALID: no" in result.bad_lines[0].reason
    with pytest.raises(DataError, match=r"2 bad line\(s\): items.jsonl:5"):
        evaluate(manifest_of("answer"), lines, says, strict=True)
    with pytest.raises(DataError, match="no usable line"):
        evaluate(manifest_of("answer"), lines[4:], says)
    with pytest.raises(DataError, match=r"2 of the 3 lines of .* cannot be used"):
        evaluate(manifest_of("answer"), lines[3:], says)


def test_entailment(evaluate: Evaluate) -> None:
    labels = ("contradiction", "neutral", "entailment")
    truth = ["entailment", "entailment", "neutral", "contradiction", "perhaps"]
    answers = ["entailment", "neutral", "neutral", "contradiction", "neutral"]
    lines = [
        {"id": text, "img": "a.jpg", "text": text, "label": label}
        for text, label in zip("abcde", truth, strict=True)
    ]
    result = evaluate(
        manifest_of("entail", labels=labels),
        lines,
        lambda fields: {"label": answers["abcde".index(fields["text"])]},
    )
    assert result.figures["accuracy"] == 0.75
    # entailment: one of two found, none wrong; neutral: found, one wrong
    assert result.figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert [(bad.line, "perhaps" in bad.reason) for bad in result.bad_lines] == [(5, True)]


def test_reasoning_about_two_looks(evaluate: Evaluate) -> None:
    requests: list[Fields] = []
    boxes = [[0, 0, 0.5, 1]]
    line = {"features": "l.npy", "boxes": boxes, "features2": "r.npy", "boxes2": "b.npy"}
    lines = [
        {"id": "1", **line, "text": "yes", "label": True},
        {"id": "2", **line, "text": "yes", "label": "false"},
        {"id": "3", "features": "l.npy", "text": "yes", "label": True},
    ]

    def says(fields: Fields) -> Any:
        requests.append(fields)
        return {"answer": fields["text"] == "yes"}

    regions = RegionInput(dim=4, max_regions=9, boxes=True)
    result = evaluate(manifest_of("reason", labels=("false", "true"), regions=regions), lines, says)
    assert result.figures["items"] == 2 and result.figures["accuracy"] == 0.5
    assert [bad.line for bad in result.bad_lines] == [3]
    paths = {name: Path(requests[0].pop(f"{name}_path")).name for name in ("features", "features2")}
    assert paths == {"features": "l.npy", "features2": "r.npy"}
    assert Path(requests[0].pop("boxes2_path")).name == "b.npy"
    assert requests[0] == {"boxes": [[0.0, 0.0, 0.5, 1.0]], "text": "yes"}


def test_an_image_where_the_model_reads_no_features(evaluate: Evaluate) -> None:
    line = {"img": "a.jpg", "features": "a.npy", "boxes": [[0, 0, 1, 1]]}
    job = Job(Path("m.mar"), manifest_of("answer"), Path("/data/items.jsonl"))
    look = CaptionItem(id="1", captions=("x",), **line).look  # type: ignore[arg-type]
    assert job.look(look) == {"image_path": str(Path("/data/a.jpg").resolve())}


def ground_line(name: str, box: list[float], **more: Any) -> Fields:
    return {"id": name, "text": name, "box": box, **more}


def test_grounding_by_regions(evaluate: Evaluate) -> None:
    boxes = {"a": [0, 0, 0.5, 0.5], "b": [0, 0, 0.5, 0.5], "c": [0.5, 0.5, 1, 1]}
    lines = [
        ground_line("a", [0, 0, 0.5, 0.5], features="a.npy"),
        ground_line("b", [0, 0, 0.25, 0.5], features="a.npy"),  # half of what is said
        ground_line("c", [0, 0, 0.5, 0.5], features="a.npy"),
        ground_line("d", [0.5, 0, 0.5, 0.5], features="a.npy"),
        ground_line("e", [0, 0, 2, 0.5], features="a.npy"),
    ]
    regions = RegionInput(dim=4, max_regions=9, boxes=True)
    manifest = manifest_of("ground", ["region_scores"], regions=regions)
    result = evaluate(
        manifest, lines, lambda fields: {"regions": [{"box": boxes[fields["text"]], "score": 1}]}
    )
    assert result.figures["accuracy_iou_50"] == pytest.approx(2 / 3)
    assert result.figures["mean_iou"] == pytest.approx(0.5)
    assert [bad.line for bad in result.bad_lines] == [4, 5]


def test_grounding_by_a_heat_map(evaluate: Evaluate, tmp_path: Path) -> None:
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    np.save(tmp_path / "boxes.npy", np.array([right, left]))
    np.save(tmp_path / "wrong.npy", np.array([[0, 0, 80, 40]]))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4)".ljust(118) + b"\n"
    (tmp_path / "crafted.npy").write_bytes(b"\x93NUMPY\x01\x00\x77\x00" + header)
    of = {"img": "a.png"}
    lines = [
        ground_line("a", left, **of),
        ground_line("b", right, **of, boxes=[left, right]),
        ground_line("c", left, **of, boxes="boxes.npy"),
        ground_line("d", left, **of, boxes="wrong.npy"),
        ground_line("e", left, **of, boxes="missing.npy"),
        ground_line("g", left, **of, boxes="crafted.npy"),
        ground_line("f", left, **of),
    ]

    def says(fields: Fields) -> Any:
        assert fields.keys() == {"image_path", "text"}
        if fields["text"] == "f":
            return {"peak": None, "grid": [[0.0, 0.0]] * 2}
        return {"peak": {"x": 0.25, "y": 0.5}, "grid": [[1.0, 0.2]] * 2}

    result = evaluate(manifest_of("ground", ["match_logits", "word_maps"]), lines, says)
    assert result.figures["items"] == 4 and result.figures["box_items"] == 2
    assert result.figures["pointing_accuracy"] == 0.5
    assert result.figures["accuracy_iou_50"] == result.figures["mean_iou"] == 0.5
    assert [bad.line for bad in result.bad_lines] == [4, 5, 6]


VECTORS = {
    "a.jpg": [1.0, 0.0],
    "b.jpg": [0.0, 1.0],
    "c.jpg": [0.6, 0.8],
    "x": [1.0, 0.0],
    "y": [0.8, 0.6],
    "z": [0.0, 1.0],
}
"""Cosines of a, b and c with x: 1, 0, 0.6; with y: 0.8, 0.6, 0.96; with z: 0, 1, 0.8."""


def embeds(fields: Fields) -> Any:
    name = Path(fields["image_path"]).name if "image_path" in fields else fields["text"]
    return {"embedding": VECTORS[name]} if name in VECTORS else f"no {name}"


PAIRED = [
    {"id": "1", "img": "a.jpg", "captions": ["x"]},
    {"id": "2", "img": "b.jpg", "text": "y"},
    {"id": "3", "img": "c.jpg", "captions": ["z"]},
    {"id": "4", "img": "lost.jpg", "captions": ["x"]},
    {"id": "5", "img": "a.jpg", "captions": ["y", "bad"]},
    {"id": "6", "img": "a.jpg"},
]
BOTH = {"graphs": ("image", "text"), "outputs": ("image_embedding", "text_embedding")}


def test_retrieval_by_cosine(evaluate: Evaluate) -> None:
    result = evaluate(manifest_of("embed", **BOTH), PAIRED, embeds)
    # a finds x first; b finds z before y; c finds y before z
    # x finds a first; y finds c and a before b; z finds b before c
    expected = {"items": 3, "images": 3, "texts": 3}
    expected |= {"image_to_text_r1": 1 / 3, "image_to_text_r5": 1, "image_to_text_r10": 1}
    expected |= {"text_to_image_r1": 1 / 3, "text_to_image_r5": 1, "text_to_image_r10": 1}
    figures = {name: value for name, value in result.figures.items() if name != "intervals_95"}
    assert figures == pytest.approx(expected)
    assert [bad.line for bad in result.bad_lines] == [4, 5, 6]
    with pytest.raises(DataError, match="does not embed both"):
        evaluate(manifest_of("embed", **(BOTH | {"graphs": ("image",)})), PAIRED, embeds)


def test_several_lines_and_captions_about_one_image(evaluate: Evaluate) -> None:
    lines = [
        {"id": "1", "img": "a.jpg", "captions": ["z", "x"]},
        {"id": "2", "img": "b.jpg", "text": "y"},
        {"id": "3", "img": "a.jpg", "text": "y"},
    ]
    figures = evaluate(manifest_of("embed", **BOTH), lines, embeds).figures
    assert (figures["images"], figures["texts"]) == (2, 4)
    # b finds z, then both y; y of the second line finds a before b, z finds b before a
    assert figures["image_to_text_r1"] == 1 / 2
    assert figures["text_to_image_r1"] == 2 / 4


def test_matching_ranks_the_first_by_cosine_anew(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "embedding_edition", lambda archive, manifest, folder: archive)
    right = {("a.jpg", "x"), ("b.jpg", "y"), ("c.jpg", "z")}
    pairs: list[tuple[str, str]] = []

    def says(fields: Fields) -> Any:
        if len(fields) == 1:
            return embeds(fields)
        pairs.append((Path(fields["image_path"]).name, fields["text"]))
        return {"itm_score": float(pairs[-1] in right)}

    manifest = manifest_of("match", **(BOTH | {"graphs": ("image", "text", "fusion")}))
    figures = evaluate(manifest, PAIRED, says, rerank=2).figures
    # the second of each query is right, but for y, before whose image two others stand
    assert figures["reranked"] == 2 and figures["image_to_text_r1"] == pytest.approx(1 / 3)
    assert figures["reranked_image_to_text_r1"] == 1
    assert figures["reranked_text_to_image_r1"] == pytest.approx(2 / 3)
    of_images = {("a.jpg", "x"), ("a.jpg", "y"), ("b.jpg", "z"), ("b.jpg", "y"), ("c.jpg", "y")}
    assert set(pairs) == of_images | {("c.jpg", "z"), ("c.jpg", "x")}
    assert len(pairs) == len(set(pairs))
    pairs.clear()
    assert "reranked" not in evaluate(manifest, PAIRED, says, rerank=0).figures and not pairs


def test_matching_without_a_common_space(evaluate: Evaluate) -> None:
    """And pairs that cannot be matched: lost.jpg never, b.jpg with z alone."""
    scores = {("a.jpg", "x"): 3, ("c.jpg", "z"): 2, ("a.jpg", "y"): 1, ("c.jpg", "y"): 1}

    def says(fields: Fields) -> Any:
        pair = Path(fields["image_path"]).name, fields["text"]
        refused = pair[0] == "lost.jpg" or pair == ("a.jpg", "z")
        return "no" if refused else {"itm_score": float(scores.get(pair, 0))}

    result = evaluate(manifest_of("match", graphs=("text", "fusion")), PAIRED[:4], says)
    assert [bad.line for bad in result.bad_lines] == [3, 4]
    assert (result.figures["images"], result.figures["texts"]) == (2, 2)
    # b finds x and y alike, y finds a before b
    assert result.figures["image_to_text_r1"] == result.figures["text_to_image_r1"] == 0.5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b'{"img": "a", "captions": ["x"]}', "id: Field required"),
        (b'{"id": "", "img": "a", "captions": ["x"]}', "id: Value should have"),
        (b'{"id": "1", "captions": ["x"]}', "neither img nor features"),
        (b'{"id": "1", "img": "a", "captions": []}', "captions: Value should have"),
        (b'{"id": "1", "img": "a", "captions": ["\\ud800"]}', "lone surrogate"),
        (b'{"id": "0", "img": "a", "captions": ["x"]}', "id 0 is on line 1 already"),
        (b'{"id": "1", "img": "a", "captions": ["x"], "boxes": [[0, 0, 1]]}', "boxes: "),
    ],
)
def test_lines_that_are_left_out(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "items.jsonl"
    good = b'{"id": "%d", "img": "a", "captions": "one alone", "other": [1]}'
    file.write_bytes(b"\n".join([good % 0, b"", line, good % 2]))
    result = read_task_file(file, CaptionItem)
    assert [item.id for item in result.items] == ["0", "2"]
    assert result.items[0].captions == ("one alone",)
    assert [bad.line for bad in result.bad_lines] == [3]
    assert reason in result.bad_lines[0].reason


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_task_file(tmp_path / "none.jsonl", PairedItem)
