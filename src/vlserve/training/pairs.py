"""Images and the texts that belong to them, as the frozen part of a dual encoder sees them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlserve.errors import DataError
from vlserve.runtime.errors import RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Tokenizer, check_size, read_text
from vlserve.training.evaluators.corpus import Corpus, corpus_of
from vlserve.training.evaluators.items import PairedItem, TaskFile, read_task_file
from vlserve.training.json_lines import BadLine, refuse_mostly_bad

BATCH = 16
REPORT_BATCHES = 8
OnEncoded = Callable[[int, int], None]
Features = NDArray[np.float32]


class FrozenEncoders(Protocol):
    """The part of a dual encoder that is not trained."""

    def images(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, features)."""
        ...

    def texts(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """(batch, text) -> (batch, width)."""
        ...


@dataclass(frozen=True)
class Pairs:
    """``images`` (images, features), ``texts`` (texts, width); the corpus says which text belongs
    to which image."""

    corpus: Corpus
    images: Features
    texts: Features
    bad_lines: tuple[BadLine, ...]

    def texts_of_images(self) -> list[NDArray[np.int64]]:
        return [np.array(sorted(texts)) for texts in self.corpus.texts_of_images()]


@dataclass(frozen=True)
class Reader:
    """Reads files by one frozen part; what it makes of images and texts is kept in ``cache`` under
    a digest of ``weights`` and of everything that it saw."""

    frozen: FrozenEncoders
    weights: str
    image: ImageInput
    tokenizer: Tokenizer
    cache: Path
    on_encoded: OnEncoded | None = None

    def read(self, path: Path, *, without: frozenset[str] = frozenset()) -> Pairs:
        """Return the pairs of a file. Lines whose image or texts serving would refuse are left out,
        and so are ids of ``without``. DataError where there are not two images, or more than half
        of the lines are left out."""
        file = read_task_file(path, PairedItem)
        file = file.without(
            {line: "its id is in the training file too" for line, item in file.by_line.items()
             if item.id in without} | _refused(file, self.image, self.tokenizer)
        )  # fmt: skip
        refuse_mostly_bad(path, file.used, file.bad_lines)
        corpus = corpus_of(file)
        if len(corpus.looks) < 2:
            bad = f": {file.bad_lines[0]}" if file.bad_lines else ""
            raise DataError(f"{path} has {len(corpus.looks)} usable image(s), at least two{bad}")
        files = [path.parent / str(look.img) for look in corpus.looks]
        images = self._kept("images", [file.read_bytes() for file in files], self._see)
        texts = self._kept("texts", [text.encode() for text in corpus.texts], self._understand)
        return Pairs(corpus, images, texts, file.bad_lines)

    def _kept(
        self, kind: str, raw: Sequence[bytes], make: Callable[[Sequence[bytes]], Tensor]
    ) -> Features:
        digest = hashlib.sha256(
            f"{kind} {self.weights} {self.image} {self.tokenizer.spec}".encode()
        )
        for content in raw:
            digest.update(hashlib.sha256(content).digest())
        file = self.cache / f"{kind}-{digest.hexdigest()}.npy"
        if not file.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            # not by the process's number: those of two containers may be the same
            partial = file.with_name(f".{file.stem}-{uuid4().hex}.npy")
            try:
                np.save(partial, np.concatenate(list(self._batches(raw, make))))
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
        features: Features = np.load(file, allow_pickle=False)
        return features

    @torch.no_grad()
    def _batches(
        self, raw: Sequence[bytes], make: Callable[[Sequence[bytes]], Tensor]
    ) -> Iterator[Features]:
        for number, start in enumerate(range(0, len(raw), BATCH), start=1):
            yield make(raw[start : start + BATCH]).numpy()
            count = min(start + BATCH, len(raw))
            if self.on_encoded and (number % REPORT_BATCHES == 0 or count == len(raw)):
                self.on_encoded(count, len(raw))

    def _see(self, raw: Sequence[bytes]) -> Tensor:
        return self.frozen.images(torch.from_numpy(np.stack([decode(x, self.image) for x in raw])))

    def _understand(self, raw: Sequence[bytes]) -> Tensor:
        text = self.tokenizer.encode([content.decode() for content in raw])
        mask = np.arange(text.ids.shape[1]) < text.lengths[:, None]
        return self.frozen.texts(
            torch.from_numpy(text.ids), torch.from_numpy(mask.astype(np.int64))
        )


def _refused(file: TaskFile[PairedItem], image: ImageInput, tokenizer: Tokenizer) -> dict[int, str]:
    reasons = {}
    seen: dict[str, str | None] = {}  # captions of one image may have a line each
    for line, item in file.by_line.items():
        try:
            for text in item.texts:
                check_size(read_text(text), tokenizer.spec)
            if item.img is None:
                raise ValueError("no img")
        except (RequestError, ValueError) as error:
            reasons[line] = f"{item.img}: {error}"
            continue
        if item.img not in seen:
            seen[item.img] = _fault_of(file.path.parent, item.img, image)
        if fault := seen[item.img]:
            reasons[line] = fault
    return reasons


def _fault_of(folder: Path, name: str, image: ImageInput) -> str | None:
    """Why serving would refuse an image, if it would."""
    try:
        decode((folder / name).read_bytes(), image)
    except OSError as error:
        return f"image {name} cannot be read: {error.strerror}"
    except (RequestError, ValueError) as error:
        return f"{name}: {error}"
    return None
