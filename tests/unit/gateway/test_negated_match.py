"""Regular expressions for what is none of some words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlserve.control.gateway.forwarded_headers import FOR_ENGINES
from vlserve.control.gateway.negated_match import negated_pattern

NAMES = st.text("abc-.", max_size=4)


@given(st.sets(NAMES, max_size=6), NAMES)
def test_a_string_matches_if_it_is_none_of_the_words(words: set[str], string: str) -> None:
    assert bool(re.fullmatch(negated_pattern(words), string)) == (string not in words)


@given(st.sets(NAMES, min_size=1, max_size=6))
def test_no_word_matches_and_each_longer_or_shorter_string_does(words: set[str]) -> None:
    pattern = re.compile(negated_pattern(words))
    for word in words:
        assert not pattern.fullmatch(word)
        for other in {word[:-1], f"{word}a", f"{word}z"} - words:
            assert pattern.fullmatch(other)


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "content-encoding", "x-request-i"])
def test_engines_get_no_other_header(name: str) -> None:
    pattern = re.compile(negated_pattern(FOR_ENGINES))
    assert pattern.fullmatch(name)
    assert not any(map(pattern.fullmatch, FOR_ENGINES))
