"""BERT's tokenizer as the one file that travels in an archive."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlserve.errors import ExportError
from vlserve.runtime.manifest import TextInput

TOKENIZER = "tokenizer.json"
"""Its name in an archive's assets."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a vocab.txt, one a line; the line is the id."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ExportError(f"vocabulary {path.name} cannot be read: {error}") from error


def wordpiece(
    vocabulary: Sequence[str], template: str = "[CLS] $A [SEP]", added: Sequence[str] = ()
) -> Tokenizer:
    """bert-base-uncased's tokenizer over ``vocabulary`` (id = place), ``added`` special tokens
    after it; ``template`` may name them. ExportError where the vocabulary lacks a special token or
    repeats one."""
    ids = {token: place for place, token in enumerate(vocabulary)}
    lacking = [token for token in SPECIAL if token not in ids]
    if lacking or len(ids) < len(vocabulary):
        raise ExportError(f"vocabulary repeats a token, or lacks one of {', '.join(SPECIAL)}")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([*SPECIAL, *added])
    put_in = ("[CLS]", "[SEP]", *(token for token in added if token in template))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in put_in]
    )
    return tokenizer


def wordpiece_input(tokenizer: Tokenizer, max_length: int, assets: Path) -> TextInput:
    """How an archive turns texts into ids with ``tokenizer``, which is written into ``assets``.
    Texts are cut to ``max_length`` tokens and padded to the longest of their batch."""
    tokenizer.save(str(assets / TOKENIZER))
    return TextInput(
        tokenizer="wordpiece",
        file=f"assets/{TOKENIZER}",
        max_length=max_length,
        pad_id=tokenizer.token_to_id("[PAD]"),
        unknown_id=tokenizer.token_to_id("[UNK]"),
        pad_to_max=False,
    )
