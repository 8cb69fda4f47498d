"""The character vocabulary of the training titles."""

from collections import Counter
from collections.abc import Iterable

from vlserve.training.options import PAD_ID, UNKNOWN_ID


def build_vocabulary(titles: Iterable[str], min_count: int) -> dict[str, int]:
    """Character -> id for every character that occurs ``min_count`` times, the commonest first,
    equally common ones by code point. Padding and unknown characters have ids of their own below;
    rare characters train the unknown one."""
    counts = Counter(character for title in titles for character in title)
    kept = [character for character, count in counts.items() if count >= min_count]
    kept.sort(key=lambda character: (-counts[character], character))
    first = max(PAD_ID, UNKNOWN_ID) + 1
    return {character: index for index, character in enumerate(kept, start=first)}
