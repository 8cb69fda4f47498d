"""Texts that look the same are read the same."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlserve.runtime.clean_text import MAX_MARKS, clean_text

FAMILY = "👨‍👩‍👧"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("café", "café"),
        ("cafe\u0301", "café"),
        ("cafe\u200b\u0301", "café"),
        ("한국어", unicodedata.normalize("NFC", "한국어")),
        (unicodedata.normalize("NFD", "한국어"), "한국어"),
        ("a\u00a0b", "a b"),
        ("a\u3000\u2003 b", "a b"),
        (" title\n", "title"),
        ("one\r\ntwo\tthree", "one two three"),
        ("\ufefftitle", "title"),
        ("ti\u200btle\u2060", "title"),
        ("ti\u00adtle", "title"),
        ("\u200etitle\u200f", "title"),
        ("\u202etitle\u202c", "title"),
        ("a\u200db", "ab"),
        ("猫\u200d咪", "猫咪"),
        (FAMILY, FAMILY),
        (f"{FAMILY}\u200d", FAMILY),
        (f"\u200d{FAMILY}", FAMILY),
        ("🏳️‍🌈 flag", "🏳️‍🌈 flag"),
        ("👩🏽‍🚀", "👩🏽‍🚀"),
        ("❤️‍🔥", "❤️‍🔥"),
        ("", ""),
        (" \u200b\n", ""),
        ("可爱的猫咪", "可爱的猫咪"),
        ("مرحبا", "مرحبا"),
        ("a" + "\u0301" * 100, unicodedata.normalize("NFC", "a" + "\u0301" * MAX_MARKS)),
    ],
    ids=ascii,
)
def test_what_is_invisible_is_gone(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text())
@example("a\u0345\u200b\u0301")
@example("\u200d\u200d👨\u200d\u200d👩")
@example("👨\u200d\u200b👩")
def test_it_changes_nothing_twice(text: str) -> None:
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert clean == " ".join(clean.split())


@given(st.text(), st.text())
def test_variants_are_read_the_same(first: str, second: str) -> None:
    text = f"{first} {second}"
    for variant in (
        unicodedata.normalize("NFD", text),
        f"{first}\u00a0{second}",
        f"\u200b{first}\n{second}\ufeff",
    ):
        assert clean_text(variant) == clean_text(text)
