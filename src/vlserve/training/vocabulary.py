"""The character vocabulary of the training titles."""

from collections import Counter
from collections.abc import Iterable

from vlserve.training.options import PAD_ID, UNKNOWN_ID


def build_vocabulary(titles: Iterable[str], min_count: int) -> dict[str, int]:
    """Character -> id for every character that occurs ``min_count`` times, the commonest first,
    equally common ones by code point. A capital letter shares the id of its small one. Padding and
    unknown characters have ids of their own below; rare characters train the unknown one."""
    counts = Counter(_small(character) for title in titles for character in title)
    kept = [character for character, count in counts.items() if count >= min_count]
    kept.sort(key=lambda character: (-counts[character], character))
    vocabulary: dict[str, int] = {}
    for index, character in enumerate(kept, start=max(PAD_ID, UNKNOWN_ID) + 1):
        for form in (character, character.upper()):
            if len(form) == 1 and _small(form) == character:
                vocabulary[form] = index
    return vocabulary


def _small(character: str) -> str:
    small = character.lower()
    return small if len(small) == 1 else character
