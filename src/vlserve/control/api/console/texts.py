"""The console's texts in English and Chinese, from one catalogue."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
"""Language -> its own name; the first is shown where a browser asks for none of them."""
CATALOGUE = Path(__file__).with_name("catalogue.json")

Texts = Callable[..., str]
"""(key, **values) -> the text in one language."""


@cache
def catalogue() -> Mapping[str, Mapping[str, str]]:
    """Return key -> language -> text."""
    texts: dict[str, dict[str, str]] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return texts


def texts_in(language: str) -> Texts:
    """Return what gives texts in ``language``. KeyError for a key that the catalogue lacks."""

    def text(key: str, **values: object) -> str:
        return catalogue()[key][language].format(**values)

    return text


def choose_language(choice: str, header: str) -> str:
    """Return the language of a page.

    Args:
        choice: by the switch; empty where it was never used.
        header: Accept-Language.
    """
    if choice in LANGUAGES:
        return choice
    ranges = [_range(part) for part in header.split(",")[:20]]
    for _, tag in sorted(ranges, key=lambda each: -each[0]):
        language = tag.partition("-")[0].strip().lower()
        if language in LANGUAGES:
            return language
    return next(iter(LANGUAGES))


def _range(part: str) -> tuple[float, str]:
    """Return the quality and the tag of one language range (RFC 9110, 12.5.4)."""
    tag, _, quality = part.partition(";")
    try:
        return float(quality.partition("=")[2] or 1.0), tag
    except ValueError:
        return 0.0, tag
