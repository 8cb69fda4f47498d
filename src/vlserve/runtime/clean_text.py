"""Invisible differences between texts, taken away: one function for training, evaluation, serving.

An archive whose manifest does not name a cleaning leaves its texts as they are.
"""

import re
import unicodedata
from typing import Literal

Cleaning = Literal["invisible"]
"""``invisible``: what `clean_text` does."""

MAX_MARKS = 30
"""Most combining marks in a row; the others are left out. No language writes more (Unicode Standard
Annex 15, stream-safe text), and the time to sort them grows with the square of their number."""

_PICTURE = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff"
)
_PICTURE += "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_ZERO_WIDTH = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0]"
    f"|(?<![{_PICTURE}\ufe0f])\u200d|\u200d(?![{_PICTURE}])"
)
"""Soft hyphens, joiners, marks of direction and fillers. The joiner of an emoji stays: it makes a
family of three people."""


def clean_text(text: str) -> str:
    """Return the text as all its invisible variants are read.

    Zero-width characters are left out but for the joiners of an emoji, the rest is NFC, any run of
    white space (a no-break space and a line break too) becomes one space, and the ends are bare.
    """
    if text.isascii():
        return " ".join(text.split())
    visible = _ZERO_WIDTH.sub("", text)
    return " ".join(unicodedata.normalize("NFC", _few_marks(visible)).split())


def _few_marks(text: str) -> str:
    characters, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_MARKS:
            characters.append(character)
    return "".join(characters)
