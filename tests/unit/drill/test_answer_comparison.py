"""What counts as one answer of two sides, and what does not."""

from typing import Any

import pytest

from vlserve.drill.answer_comparison import ALONE, Response, compare, difference


def said(status: int = 200, **body: Any) -> Response:
    return Response(status, body)


def tags(*scores: tuple[str, float]) -> Response:
    return said(tags=[{"tag": tag, "score": score} for tag, score in scores])


def test_scores_are_told_by_their_largest_difference() -> None:
    result = difference(tags(("cat", 0.5), ("dog", 0.3)), tags(("cat", 0.5), ("dog", 0.25)))
    assert result.where == ""
    assert result.score == pytest.approx(0.05)


def test_entries_may_change_places_and_others_may_not() -> None:
    assert difference(
        tags(("cat", 0.5), ("dog", 0.499)), tags(("dog", 0.5), ("cat", 0.5))
    ).score == pytest.approx(0.001)
    assert difference(said(box=[1.0, 2.0]), said(box=[2.0, 1.0])).score == 1.0
    assert difference(said(words=["a", "b"]), said(words=["b", "a"])).where


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (tags(("cat", 0.5)), tags(("dog", 0.5))),
        (tags(("cat", 0.5)), tags(("cat", 0.5), ("dog", 0.5))),
        (said(text="a cat"), said(text="a dog")),
        (said(count=1), said(count=2)),
        (said(right=True), said(right=1)),
        (said(text="a"), said()),
        (said(text=None), said(text="a")),
        (said(200), said(422)),
    ],
)
def test_what_is_no_score_must_be_the_same(expected: Response, actual: Response) -> None:
    assert difference(expected, actual).where
    comparison = compare("triton", {"one": actual}, "torchserve", {"one": expected}, ALONE)
    assert not comparison.passed
    assert comparison.statuses + comparison.others == 1
    assert len(comparison.examples) == 1


def test_a_limit_judges_scores_and_none_makes_them_a_figure() -> None:
    far = {"one": tags(("cat", 0.5))}, {"one": tags(("cat", 0.6))}
    assert not compare("triton", far[1], "torchserve", far[0], ALONE).passed
    figure = compare("triton", far[1], "torchserve", far[0], None)
    assert figure.passed
    assert figure.largest_score == pytest.approx(0.1)
    assert not compare("triton", {"one": said(500)}, "torchserve", {"one": said()}, None).passed
    assert not compare("triton", {}, "torchserve", {}, ALONE).passed
