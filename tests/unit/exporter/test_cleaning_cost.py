"""The cleaning of texts costs no more than their length, whatever a client sends."""

import pytest

from vlserve.exporter.text_cleaning import Kind, Original, cleaning, cut_after

MANY = 500_000


@pytest.mark.parametrize("kind", ["caption", "question"])
@pytest.mark.parametrize("original", ["albef", "blip"])
def test_spaces_and_words_take_no_longer_than_their_length(original: Original, kind: Kind) -> None:
    """With the square of it this would take an hour: 16,000 spaces in a question took a second."""
    clean_text = cleaning(original, kind).normalize_str(" " * MANY + "a" + "\n" * MANY + "b")
    assert clean_text.strip("\n a") == "b"
    for text in ("a" + " " * MANY, "a " * MANY):
        cut = cut_after(1).normalize_str(cleaning(original, kind).normalize_str(text))
        assert cut == "a"
