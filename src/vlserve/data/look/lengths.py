"""How long texts are, in characters or in tokens."""

from collections.abc import Sequence
from pathlib import Path

from vlserve.data.look.survey import TextLengths
from vlserve.exporter.wordpiece import read_vocabulary, wordpiece


def characters(texts: Sequence[str]) -> Sequence[int]:
    """Return the number of characters of each text."""
    return [len(text) for text in texts]


def word_pieces(vocabulary: Path) -> TextLengths:
    """Return what counts the tokens of texts, those at both ends too.

    Raises:
        ExportError: The vocabulary cannot be read.
    """
    tokenizer = wordpiece(read_vocabulary(vocabulary))

    def lengths(texts: Sequence[str]) -> Sequence[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    return lengths
