"""Figures by hand."""

import numpy as np
import pytest

from vlserve.training.metrics.boxes import box_iou, box_of_map, pixel_iou, points_into
from vlserve.training.metrics.confidence import means
from vlserve.training.metrics.recall import ranks, recalls
from vlserve.training.metrics.vqa import (
    Annotation,
    annotations_of,
    is_any_of,
    normalised,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("  The Two dogs.\n", "2 dogs"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # only one apostrophe is put back
        ("couldn'tve", "couldn't've"),
        ("black-and-white", "black and white"),
        ("left - right", "left right"),
        ("1,000-2,000", "10002000"),
        ("3.5 m.", "3.5 m"),
        ("a", ""),
    ],
)
def test_normalised_answers(answer: str, plain: str) -> None:
    assert normalised(answer) == plain


def test_vqa_accuracy_leaves_each_annotator_out_in_turn() -> None:
    # left out one of the 2 who say red: 1 of the others does; left out another: 2 do
    answers = ["red", "red", *["blue"] * 8]
    assert vqa_accuracy("Red.", annotations_of(answers)) == pytest.approx(
        (2 * 1 / 3 + 8 * 2 / 3) / 10
    )
    assert vqa_accuracy("blue", annotations_of(answers)) == 1.0
    assert vqa_accuracy("green", annotations_of(answers)) == 0.0


def test_annotators_who_are_not_told_apart_count_as_one() -> None:
    answers = [Annotation("left"), Annotation("left"), Annotation("right")]
    assert vqa_accuracy("left", answers) == pytest.approx(1 * (2 / 3) / 3)


def test_any_answer_counts_once_normalised() -> None:
    assert is_any_of("two", ["3", "2"])
    assert is_any_of("The night_stand", ["night stand"])
    assert not is_any_of("four", ["3", "2"])


def test_ranks_and_what_is_alike() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.5], [0.5, 0.5, 0.5]])
    right = [{0}, {1}, {2, 0}]
    # in the second row one wrong candidate is better and one alike; in the last one is alike
    assert ranks(scores, right).tolist() == [0, 2, 1]
    assert ranks(np.full((1, 3), -np.inf), [{0}]).tolist() == [2]


def test_recall_at_1_5_and_10() -> None:
    figures = {name: hits.mean() for name, hits in recalls(np.array([0, 4, 5, 9, 10])).items()}
    assert figures == {"r1": 1 / 5, "r5": 2 / 5, "r10": 4 / 5}


def test_boxes_in_fractions() -> None:
    assert box_iou([0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]) == pytest.approx(1 / 7)
    assert box_iou([0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5]) == 0.0
    assert box_iou([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(1)


def test_boxes_in_pixels_need_more_than_one_to_overlap() -> None:
    assert pixel_iou([0, 0, 10, 10], [8, 0, 10, 10]) == pytest.approx(20 / 180)
    assert pixel_iou([0, 0, 10, 10], [9, 0, 10, 10]) == 0.0


def test_the_box_of_a_heat_map() -> None:
    grid = np.zeros((4, 4))
    grid[1, 2] = 1.0  # of 40 x 40 pixels: 20 to 30, 10 to 20
    left, right, everything = [0, 0, 15, 40], [18, 8, 14, 14], [0, 0, 40, 40]
    assert box_of_map(grid, [left, right, everything], 40, 40) == 1
    assert box_of_map(np.ones((4, 4)), [left, everything], 40, 40, alpha=0.0) == 1
    assert box_of_map(np.ones((4, 4)), [left, everything], 40, 40, alpha=2.0) == 0
    assert box_of_map(np.zeros((4, 4)), [left, right], 40, 40) is None
    assert box_of_map(grid, [], 40, 40) is None


def test_the_pointing_game() -> None:
    assert points_into({"x": 0.5, "y": 0.25}, [0.4, 0.2, 0.6, 0.3])
    assert not points_into({"x": 0.5, "y": 0.35}, [0.4, 0.2, 0.6, 0.3])
    assert not points_into(None, [0, 0, 1, 1])


def test_means_and_how_sure_they_are() -> None:
    figures = means({"accuracy": [True, False, True, True], "alone": [1.0, 1.0]})
    low, high = figures["intervals_95"]["accuracy"]
    assert figures["accuracy"] == 0.75 and 0 <= low < 0.75 < high <= 1
    assert figures["intervals_95"]["alone"] == [1.0, 1.0]
    assert means({"accuracy": [1.0]}) == {"accuracy": 1.0}
