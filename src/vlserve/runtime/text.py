"""Text -> token ids: one function for training, export, evaluation and serving."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.clean_text import clean_text
from vlserve.runtime.errors import ArchiveUnreadable, ErrorCode, RequestError
from vlserve.runtime.manifest import TextInput

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TextBatch:
    """Padded token ids (batch, length) and how many of each row are real (batch,), at least 1."""

    ids: Ids
    lengths: Ids


class _Vocabulary(Protocol):
    def ids(self, texts: Sequence[str], max_length: int) -> list[list[int]]: ...


class Tokenizer:
    """Turns texts into ids as the manifest's TextInput says. Thread-safe."""

    def __init__(self, spec: TextInput, vocabulary: _Vocabulary) -> None:
        self.spec = spec
        self._vocabulary = vocabulary

    def ids(self, text: str) -> Ids:
        """Return the ids (length,) of one text, at most max_length; empty for an empty text.

        RequestError (TEXT_TOO_LONG) where it has more, and the manifest says to refuse it.
        """
        return self.rows([text])[0]

    def rows(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of several texts, in one call of the tokenizer."""
        if self.spec.cleaning is not None:
            texts = [clean_text(text) for text in texts]
        most = self.spec.max_length
        rows = self._vocabulary.ids(texts, _ids_to_make(self.spec))
        if any(len(row) > most for row in rows):
            raise RequestError(
                ErrorCode.TEXT_TOO_LONG,
                f"text has more than {most} tokens, the most that the model has positions for",
            )
        return [np.asarray(row, dtype=np.int64) for row in rows]

    def pad(self, rows: Sequence[Ids]) -> TextBatch:
        """Pad the ids of several texts to one batch, as wide as the longest or as max_length.

        A text without a token counts as one token of padding, so that a gather at length - 1
        stays inside the row and a batch of empty texts has a width.
        """
        lengths = np.array([max(len(row), 1) for row in rows], dtype=np.int64)
        width = self.spec.max_length if self.spec.pad_to_max else int(lengths.max(initial=1))
        ids = np.full((len(rows), width), self.spec.pad_id, dtype=np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return TextBatch(ids, lengths)

    def encode(self, texts: Sequence[str]) -> TextBatch:
        """Encode texts as one batch."""
        return self.pad(self.rows(texts))


def _ids_to_make(spec: TextInput) -> int:
    """Return one id more than a text may have, which shows that it is too long."""
    return spec.max_length + (spec.too_long == "refuse")


class _Characters:
    def __init__(self, ids: dict[str, int], unknown_id: int) -> None:
        self._ids = ids
        self._unknown_id = unknown_id

    def ids(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        get, unknown = self._ids.get, self._unknown_id
        return [[get(character, unknown) for character in text[:max_length]] for text in texts]


class _WordPiece:
    def __init__(self, file: Path, max_length: int) -> None:
        # its pool of threads costs a batch of titles more than it saves, and takes cores of others
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def ids(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        return [encoding.ids[:max_length] for encoding in encoded]


def load_tokenizer(spec: TextInput, root: Path) -> Tokenizer:
    """Load the tokenizer whose file lies under ``root``: ``{"char": id}`` JSON for characters, a
    tokenizer.json of the tokenizers library for wordpiece. ArchiveUnreadable when it is neither.
    """
    file = root / spec.file
    try:
        if spec.tokenizer == "wordpiece":
            return Tokenizer(spec, _WordPiece(file, _ids_to_make(spec)))
        return Tokenizer(spec, _Characters(_character_ids(file), spec.unknown_id))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ArchiveUnreadable(f"tokenizer {spec.file} cannot be read: {error}") from error


def _character_ids(file: Path) -> dict[str, int]:
    ids = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(ids, dict):
        raise ValueError("not a JSON object of character -> id")
    wrong = [key for key, value in ids.items() if type(value) is not int or value < 0]
    if wrong:
        raise ValueError(f"ids must be whole numbers from 0: {wrong[:3]}")
    return ids


def read_text(value: Any, name: str = "text") -> str:
    """Read the text of a request: bytes from a form, or str from JSON. RequestError
    (TEXT_UNREADABLE) when it is not Unicode text, ValueError when it is no text at all; ``name`` is
    the field's."""
    if isinstance(value, bytes | bytearray):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            why = f"{name} is not UTF-8: {error}"
            raise RequestError(ErrorCode.TEXT_UNREADABLE, why) from error
    if not isinstance(value, str):
        raise ValueError("must be text")
    if "\0" in value:
        raise RequestError(ErrorCode.TEXT_UNREADABLE, f"{name} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        why = f"{name} holds a lone surrogate at character {error.start}"
        raise RequestError(ErrorCode.TEXT_UNREADABLE, why) from error
    return value


def check_size(text: str, spec: TextInput) -> None:
    """Raise RequestError (TEXT_TOO_LONG) when ``text`` is over the byte limit; longer texts than
    max_length are only cut."""
    size_bytes = len(text.encode("utf-8"))
    if size_bytes > spec.max_bytes:
        raise RequestError(
            ErrorCode.TEXT_TOO_LONG, f"text has {size_bytes} bytes, the limit is {spec.max_bytes}"
        )
