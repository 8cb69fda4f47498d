"""BERT's tokenizer as the one file that travels in an archive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlserve.errors import ExportError
from vlserve.exporter.json_file import read_json
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import TextInput
from vlserve.text_files import read_utf8

TOKENIZER = "tokenizer.json"
"""Its name in an archive's assets."""

VOCABULARY = "vocab.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: Path) -> list[str]:
    """Return tokens in the order of their ids: of a vocab.txt, one a line, or of a tokenizer.json,
    which transformers 5 writes instead: where there is no vocab.txt, the one beside it is read.

    ExportError where there is neither, and for a tokenizer that is not read.
    """
    tokenizer_file = path.with_name(TOKENIZER)
    if path.name == VOCABULARY and not path.exists() and tokenizer_file.exists():
        path = tokenizer_file
    if path.suffix == ".json":
        return _tokens_of(read_json(path, f"vocabulary {path.name}"), path.name)
    try:
        return read_utf8(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ExportError(f"vocabulary {path.name} cannot be read: {error}") from error


def _tokens_of(content: Any, file: str) -> list[str]:
    """Return the tokens of a tokenizer.json; those added after the model's own are left to the
    family."""
    if isinstance(content, list) and all(isinstance(token, str) for token in content):
        return content
    parts = content if isinstance(content, dict) else {}
    model, normalizer = (parts.get(name) or {} for name in ("model", "normalizer"))
    vocabulary = model.get("vocab")
    if model.get("type") != "WordPiece" or not isinstance(vocabulary, dict):
        kind = model.get("type", "no tokenizer's")
        raise ExportError(f"{file} is {kind}; only a tokenizer of BERT's, a WordPiece, is read")
    if normalizer.get("lowercase") is False:
        raise ExportError(f"{file} keeps capitals apart; only lower-case vocabularies are read")
    try:
        ids = {token["id"]: token["content"] for token in parts.get("added_tokens", ())}
        ids |= {place: token for token, place in vocabulary.items()}
        last = max(vocabulary.values(), default=-1)
        gap = next(place for place in range(last + 2) if place not in ids or place > last)
    except (KeyError, TypeError) as error:
        raise ExportError(f"{file} is no tokenizer's: {error!r}") from error
    if gap <= last:
        raise ExportError(f"{file} has no token of id {gap}")
    return [str(ids[place]) for place in range(gap)]


def wordpiece(
    vocabulary: Sequence[str], template: str = "[CLS] $A [SEP]", extra_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Return bert-base-uncased's tokenizer over ``vocabulary`` (id = place), the special tokens
    ``extra_tokens`` after it; ``template`` may name them. ExportError where the vocabulary lacks a
    special token or repeats one."""
    ids = {token: place for place, token in enumerate(vocabulary)}
    missing_tokens = [token for token in SPECIAL if token not in ids]
    if missing_tokens or len(ids) < len(vocabulary):
        raise ExportError(f"vocabulary repeats a token, or lacks one of {', '.join(SPECIAL)}")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([*SPECIAL, *extra_tokens])
    template_tokens = ("[CLS]", "[SEP]", *(token for token in extra_tokens if token in template))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in template_tokens],
    )
    return tokenizer


def wordpiece_input(
    tokenizer: Tokenizer,
    max_length: int,
    assets: Path,
    cleaning: Cleaning | None = None,
    too_long: Literal["cut", "refuse"] = "cut",
) -> TextInput:
    """Return how an archive turns texts into ids with ``tokenizer``, which is written into
    ``assets``. Texts of more than ``max_length`` tokens are cut, or refused; others are padded to
    the longest of their batch."""
    tokenizer.save(str(assets / TOKENIZER))
    return TextInput(
        tokenizer="wordpiece",
        file=f"assets/{TOKENIZER}",
        max_length=max_length,
        pad_id=tokenizer.token_to_id("[PAD]"),
        unknown_id=tokenizer.token_to_id("[UNK]"),
        pad_to_max=False,
        cleaning=cleaning,
        too_long=too_long,
    )
