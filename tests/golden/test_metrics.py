"""Figures of evaluation against those of the originals' own evaluation code.

A golden file of figures is told by what it holds, whatever it is called.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.golden_cases import COPY, COVERED, assert_close, golden_folder
from vlserve.exporter.text_cleaning import cleaning, cut_after
from vlserve.training.metrics.boxes import RIGHT_FROM, box_of_map, pixel_iou
from vlserve.training.metrics.captions import environment_with_java, score_captions
from vlserve.training.metrics.coco_captions import BLEU, cider_d_by, overlaps, tokenized
from vlserve.training.metrics.vqa import (
    Annotation,
    in_plain_words,
    normalised,
    vqa_accuracy,
    without_punctuation,
)

KINDS = {
    "captions": {"refs_raw", "cand_raw"},
    "vqa": {"strings", "questions"},
    "boxes": {"iou", "grounding"},
    "texts": {"cases"},
}
"""What a file of each kind holds."""
COVERED.add("metrics")
Golden = dict[str, Any]


@cache
def goldens(kind: str) -> tuple[tuple[str, Golden], ...]:
    """(name, content) of every file of a kind."""
    for root in (golden_folder(), COPY):
        files = sorted((root / "metrics").rglob("*.json"))
        pairs = [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files]
        matches = tuple((name, content) for name, content in pairs if KINDS[kind] <= content.keys())
        if matches:
            return matches
    raise FileNotFoundError(f"no figures of {kind} in {golden_folder()} or {COPY}")


def of_kind(kind: str) -> pytest.MarkDecorator:
    pairs = goldens(kind)
    ids = [f"metrics/{name}" for name, _ in pairs]
    return pytest.mark.parametrize("golden", [content for _, content in pairs], ids=ids)


def test_every_file_is_of_a_known_kind() -> None:
    names = [name for kind in KINDS for name, _ in goldens(kind)]
    stems = [file.stem for file in (golden_folder() / "metrics").rglob("*.json")]
    assert set(stems) <= set(names)


@of_kind("vqa")
def test_answers_are_normalised_as_by_the_official_script(golden: Golden) -> None:
    for case in golden["strings"]:
        text = case["stripped"]
        assert without_punctuation(text) == case["processPunctuation"], case
        assert in_plain_words(case["processPunctuation"]) == case["processDigitArticle"], case
        assert in_plain_words(text) == case["processDigitArticle_only"], case
        assert normalised(case["in"]) == case["processDigitArticle"], case


@of_kind("vqa")
def test_vqa_accuracy(golden: Golden) -> None:
    groups: dict[tuple[str, str], list[float]] = {}
    for case in golden["questions"]:
        annotations = [
            Annotation(answer, number if case["has_answer_id"] else None)
            for number, answer in enumerate(case["gt_answers"])
        ]
        accuracy = vqa_accuracy(case["result"], annotations)
        assert 100 * accuracy == pytest.approx(case["accuracy"], abs=0.005 + 1e-9), case
        for name in (
            ("overall", ""),
            ("perQuestionType", case["question_type"]),
            ("perAnswerType", case["answer_type"]),
        ):
            groups.setdefault(name, []).append(accuracy)
    reference = golden["accuracy"]
    assert len(groups) == 1 + len(reference["perQuestionType"]) + len(reference["perAnswerType"])
    for (group, kind), accuracies in groups.items():
        expected = reference[group][kind] if kind else reference[group]
        assert round(100 * float(np.mean(accuracies)), 2) == expected, (group, kind)


@of_kind("boxes")
def test_boxes(golden: Golden) -> None:
    for case in golden["iou"]:
        assert_close(
            np.array(pixel_iou(case["box1"], case["box2"])), np.array(case["iou"]), str(case)
        )


@of_kind("boxes")
def test_the_box_that_a_heat_map_is_in(golden: Golden) -> None:
    right: dict[str, list[bool]] = {}
    for case in golden["grounding"]:
        boxes = [box[:4] for box in case["dets"]]
        place = box_of_map(
            np.array(case["map"]), boxes, case["width"], case["height"], golden["alpha"]
        )
        assert place is not None and boxes[place] == case["pred_box"], case["ref_id"]
        iou = pixel_iou(case["ref_box"], boxes[place])
        assert_close(np.array(iou), np.array(case["iou"]), str(case["ref_id"]))
        right.setdefault(f"{case['split']}_d", []).append(iou >= RIGHT_FROM)
    shares = {split: float(np.mean(hits)) for split, hits in right.items()}
    assert shares == pytest.approx(golden["result"], rel=1e-12)


@of_kind("texts")
def test_texts_are_cleaned_as_by_the_original(golden: Golden) -> None:
    for case in golden["cases"]:
        for kind in ("caption", "question"):
            text = cleaning("albef", kind).normalize_str(case["text"])
            cut = cut_after(case["max_words"]).normalize_str(text)
            assert cut == case[f"pre_{kind}"], case


def assert_figures(figures: dict[str, Any], golden: Golden, what: str) -> None:
    """``figures`` by our names, against BLEU, ROUGE, CIDEr and METEOR, as far as it has them."""
    ours = {"ROUGE": "rouge_l", "CIDEr": "cider_d", "METEOR": "meteor"}
    pairs = list(zip(BLEU, golden["BLEU"], strict=True))
    pairs += [(ours[name], golden[name]) for name in golden if name != "BLEU"]
    for name, reference in pairs:
        assert_close(np.array(figures[name]), np.array(reference), f"{what}: {name}")


@pytest.mark.long
@of_kind("captions")
def test_captions_end_to_end(golden: Golden) -> None:
    ids = golden["ids"]
    candidates = [golden["cand_raw"][image_id] for image_id in ids]
    result = score_captions(candidates, [golden["refs_raw"][image_id] for image_id in ids])
    library = golden["pycocoevalcap"]
    for part in ("corpus", "per_image"):
        scores = dict(result.corpus if part == "corpus" else result.each)
        assert_figures(scores, golden["s2"][part], part)
        assert_figures(scores, {name: values[part] for name, values in library.items()}, part)


@of_kind("captions")
def test_captions_are_cut_into_tokens(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", environment_with_java()["PATH"])
    ids = golden["ids"]
    references = tokenized([golden["refs_raw"][image_id] for image_id in ids])
    candidates = tokenized([[golden["cand_raw"][image_id]] for image_id in ids])
    assert dict(zip(ids, references, strict=True)) == golden["refs_tokenized"]
    assert [caption for (caption,) in candidates] == [
        golden["cand_tokenized"][image_id] for image_id in ids
    ]


@of_kind("captions")
def test_captions_in_lower_case_cut_at_spaces(golden: Golden) -> None:
    ids = golden["ids"]
    candidates = [golden["cand_raw"][image_id].lower() for image_id in ids]
    corpus, image_scores = overlaps(
        candidates, [[text.lower() for text in golden["refs_raw"][image_id]] for image_id in ids]
    )
    reference = golden["s2_whitespace_tokens"]
    for part, figures in (("corpus", corpus), ("per_image", image_scores)):
        expected = {name: values[part] for name, values in reference.items()}
        assert_figures(dict(figures), expected, part)


@of_kind("captions")
def test_captions_by_the_words_of_another_corpus(golden: Golden) -> None:
    references, ids = golden["refs_tokenized"], golden["ids"]
    reference = golden["s2_cider_with_external_df"]
    scores = cider_d_by(
        [references[image_id] for image_id in reference["df_ids"]],
        [golden["cand_tokenized"][image_id] for image_id in ids],
        [references[image_id] for image_id in ids],
    )
    assert_close(np.array(scores), np.array(reference["per_image"]), "of each")
    assert_close(np.array(np.mean(scores)), np.array(reference["corpus"]), "of all")


def test_the_copy_holds_every_kind() -> None:
    contents = [
        json.loads(file.read_text(encoding="utf-8")).keys()
        for file in Path(COPY / "metrics").glob("*.json")
    ]
    assert all(any(keys >= fields for keys in contents) for fields in KINDS.values())
