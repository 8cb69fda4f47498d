"""Changes of one text.

EDA: Wei and Zou, Easy Data Augmentation (arXiv:1901.11196): synonyms in place of words, synonyms
put in, words that change places, words left out. A word of Chinese is a character here.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vlserve.errors import DataError

Random = np.random.Generator
Synonyms = Mapping[str, Sequence[str]]
"""By word, in lower case."""
WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿]|[^\s㐀-䶿一-鿿豈-﫿]+")
CHINESE = re.compile(r"[㐀-䶿一-鿿豈-﫿]")
SIDES = {"left": "right", "right": "left", "左": "右", "右": "左"}
SIDE = re.compile(r"\b(left|right)\b|[左右]", re.IGNORECASE)


class Translator(Protocol):
    """A user's own: what texts become when they are translated and translated back."""

    def __call__(self, texts: Sequence[str], /) -> Sequence[str]: ...


def words_of(text: str) -> list[str]:
    """Return words between spaces, and each Chinese character on its own."""
    return WORD.findall(text)


def joined(words: Sequence[str]) -> str:
    """Return a text of words: a space between two of which neither is Chinese."""
    text = ""
    for word in words:
        apart = text and not CHINESE.match(text[-1]) and not CHINESE.match(word[0])
        text += f" {word}" if apart else word
    return text


def changed(text: str, share: float, synonyms: Synonyms, random: Random) -> str:
    """Apply one of the four operations, drawn, to about a ``share`` of the words; those by
    synonyms need one. A text of one word is left as it is, and never becomes empty."""
    words = words_of(text)
    if len(words) < 2:
        return text
    has_synonyms = any(word.lower() in synonyms for word in words)
    kinds: list[Callable[[list[str], int], list[str]]] = [
        lambda own, count: _swapped(own, count, random),
        lambda own, _: _thinned(own, share, random),
    ]
    if has_synonyms:
        kinds += [
            lambda own, count: _replaced(own, count, synonyms, random),
            lambda own, count: _inserted(own, count, synonyms, random),
        ]
    kind = kinds[random.integers(len(kinds))]
    return joined(kind(words, max(1, round(share * len(words)))))


def _replaced(words: list[str], count: int, synonyms: Synonyms, random: Random) -> list[str]:
    places = [place for place, word in enumerate(words) if word.lower() in synonyms]
    new = list(words)
    for place in random.permutation(places)[:count]:
        new[place] = _one_of(synonyms[words[place].lower()], random)
    return new


def _inserted(words: list[str], count: int, synonyms: Synonyms, random: Random) -> list[str]:
    candidates = [word.lower() for word in words if word.lower() in synonyms]
    new = list(words)
    for _ in range(count):
        new.insert(
            int(random.integers(len(new) + 1)),
            _one_of(synonyms[_one_of(candidates, random)], random),
        )
    return new


def _swapped(words: list[str], count: int, random: Random) -> list[str]:
    new = list(words)
    for _ in range(count):
        first, second = random.choice(len(new), 2, replace=False)
        new[first], new[second] = new[second], new[first]
    return new


def _thinned(words: list[str], share: float, random: Random) -> list[str]:
    rest = [word for word in words if random.random() >= share]
    return rest or [_one_of(words, random)]


def _one_of(words: Sequence[str], random: Random) -> str:
    return words[int(random.integers(len(words)))]


def sides_swapped(text: str) -> str:
    """Exchange ``left`` and ``right``, as in a mirror; also in Chinese, and with a
    capital."""

    def exchange(match: re.Match[str]) -> str:
        word = match[0]
        new = SIDES[word.lower()]
        return new.upper() if word.isupper() else new.title() if word[0].isupper() else new

    return SIDE.sub(exchange, text)


def read_synonyms(path: Path) -> Synonyms:
    """Read lines of words that may stand for each other, with tabs between them. DataError where
    a line has one word alone."""
    synonyms: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = [word.strip() for word in line.split("\t") if word.strip()]
        if len(words) == 1:
            raise DataError(f"{path}, line {number}: {words[0]} has no synonym behind a tab")
        for word in words:
            synonyms.setdefault(word.lower(), []).extend(x for x in words if x != word)
    return synonyms


def load_translator(path: Path) -> Translator:
    """Load the function ``translate`` of a user's Python file: texts -> as many texts. DataError
    where there is none."""
    spec = importlib.util.spec_from_file_location(f"vlserve_translator_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DataError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    translate: Translator | None = getattr(module, "translate", None)
    if translate is None:
        raise DataError(f"{path} has no function translate(texts)")
    return translate
