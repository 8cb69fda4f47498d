"""What of a vocabulary is masked, and by which token."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """``special``: ids that are never masked, [PAD] and [CLS] first; ``mask_id``; ``words``: ids
    there are, of which a masked word is drawn."""

    special: tuple[int, ...]
    mask_id: int
    words: int

    @classmethod
    def of(cls, tokens: Sequence[str], task_tokens: int = 0) -> "Vocabulary":
        """Of a config's vocabulary; task tokens stand after it."""
        special = [tokens.index(token) for token in ("[PAD]", "[CLS]", "[SEP]")]
        task_ids = range(len(tokens), len(tokens) + task_tokens)
        return cls((*special, *task_ids), tokens.index("[MASK]"), len(tokens))
