"""Images and the texts that belong to them, and how well each finds the other."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlserve.training.evaluators.items import Look, PairedItem, TaskFile
from vlserve.training.metrics.recall import ranks, recalls

Scores = NDArray[np.float64]
"""(images, texts), higher is better."""
Seen = NDArray[np.bool_]
"""(images, texts)."""


@dataclass(frozen=True)
class Corpus:
    """``owners``: of each text the place of its image; ``lines``: of each text its line."""

    looks: tuple[Look, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]
    lines: tuple[int, ...]

    def texts_of_images(self) -> list[set[int]]:
        """Return the places of each image's texts."""
        groups: list[set[int]] = [set() for _ in self.looks]
        for text, owner in enumerate(self.owners):
            groups[owner].add(text)
        return groups

    def images_of_texts(self) -> list[set[int]]:
        return [{owner} for owner in self.owners]

    def places_without(self, lines: Collection[int]) -> tuple[list[int], list[int]]:
        """Return places of the images and of the texts that stay when lines are left out."""
        texts = [text for text, line in enumerate(self.lines) if line not in lines]
        return sorted({self.owners[text] for text in texts}), texts


def corpus_of(file: TaskFile[PairedItem]) -> Corpus:
    """Make a corpus; lines that show the same image are about one image."""
    places: dict[Look, int] = {}
    for item in file.items:
        places.setdefault(item.look, len(places))
    reasons = [
        (text, places[item.look], line)
        for line, item in file.by_line.items()
        for text in item.texts
    ]
    return Corpus(
        looks=tuple(places),
        texts=tuple(text for text, _, _ in reasons),
        owners=tuple(owner for _, owner, _ in reasons),
        lines=tuple(line for _, _, line in reasons),
    )


def first_of_rows(scores: Scores, count: int) -> Seen:
    """Return the ``count`` highest of each row, those on the left of equal ones."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    mask = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(mask, best, True, axis=1)
    return mask


def recall_both_ways(
    corpus: Corpus, by_images: Scores, by_texts: Scores
) -> dict[str, NDArray[np.float64]]:
    """Return ``image_to_text_r1`` and so on: of each image 1 where one of its texts is found; and
    ``text_to_image_r1`` and so on, of each text. ``by_images`` ranks the texts of each image,
    ``by_texts`` the images of each text."""
    ways = {
        "image_to_text": ranks(by_images, corpus.texts_of_images()),
        "text_to_image": ranks(by_texts.T, corpus.images_of_texts()),
    }
    return {
        f"{way}_{name}": figure
        for way, places in ways.items()
        for name, figure in recalls(places).items()
    }


def lines_of_image(corpus: Corpus, image: int) -> Iterable[int]:
    """Yield the lines that show it."""
    return (line for line, owner in zip(corpus.lines, corpus.owners, strict=True) if owner == image)
