"""The vocabulary of the training titles: of characters, or of words and characters."""

from collections import Counter
from collections.abc import Iterable

from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.training.options import PAD_ID, UNKNOWN_ID


def build_vocabulary(titles: Iterable[str], min_count: int) -> dict[str, int]:
    """Give an id to every character that occurs ``min_count`` times, the commonest first,
    equally common ones by code point. A capital letter shares the id of its small one. Padding and
    unknown characters have ids of their own below; rare characters train the unknown one."""
    counts = Counter(_small(character) for title in titles for character in title)
    characters = [character for character, count in counts.items() if count >= min_count]
    characters.sort(key=lambda character: (-counts[character], character))
    vocabulary: dict[str, int] = {}
    for index, character in enumerate(characters, start=max(PAD_ID, UNKNOWN_ID) + 1):
        for form in (character, character.upper()):
            if len(form) == 1 and _small(form) == character:
                vocabulary[form] = index
    return vocabulary


def build_pieces(titles: Iterable[str], min_count: int) -> list[str]:
    """Return pieces for BERT's tokenizer: the words that ``min_count`` titles show, and every
    character, to begin a word and to go on with. Sorted; without the special tokens."""
    reader = wordpiece(SPECIAL)
    assert reader.normalizer is not None and reader.pre_tokenizer is not None
    counts: Counter[str] = Counter()
    for title in titles:
        normal = reader.normalizer.normalize_str(title)
        counts.update({word for word, _ in reader.pre_tokenizer.pre_tokenize_str(normal)})
    characters = {character for word in counts for character in word}
    words = {word for word, count in counts.items() if count >= min_count}
    return sorted(words | characters | {f"##{character}" for character in characters})


def _small(character: str) -> str:
    small = character.lower()
    return small if len(small) == 1 else character
