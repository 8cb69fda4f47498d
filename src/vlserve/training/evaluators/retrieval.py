"""Tasks match and embed: is the right text found by its image, and the right image by its text?"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vlserve.errors import DataError
from vlserve.exporter.pack import draft_of, pack_members
from vlserve.project import project_file
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.manifest import Manifest
from vlserve.training.evaluators.corpus import (
    Corpus,
    Scores,
    Seen,
    corpus_of,
    first_of_rows,
    lines_of_image,
    recall_both_ways,
)
from vlserve.training.evaluators.items import PairedItem, TaskFile
from vlserve.training.evaluators.job import Job, Refused, Result
from vlserve.training.metrics.confidence import means

Paired = TaskFile[PairedItem]
Reasons = dict[int, str]
"""Line -> why it is left out."""


def evaluate_embed(job: Job) -> Result:
    """Return recall at 1, 5 and 10 both ways, ranked by the cosine of image and text."""
    if not _embeds_both(job.manifest):
        raise DataError(f"{job.archive.name} does not embed both images and texts")
    file, cosines = _embedded(job, job.read(PairedItem))
    return _result(file, recall_both_ways(corpus_of(file), cosines, cosines))


def evaluate_match(job: Job) -> Result:
    """Return recall, and as ``reranked_…`` with the first ``job.rerank`` of each query ranked
    anew by the match score. A model without a common space matches every image with every text."""
    file = job.read(PairedItem)
    if not _embeds_both(job.manifest):
        corpus = corpus_of(file)
        everything = np.ones((len(corpus.looks), len(corpus.texts)), dtype=np.bool_)
        file, (scores,) = _matched(job, file, everything, ())
        return _result(file, recall_both_ways(corpus_of(file), scores, scores))
    with tempfile.TemporaryDirectory(prefix="vlserve-evaluate-") as scratch:
        edition = embedding_edition(job.archive, job.manifest, Path(scratch))
        file, cosines = _embedded(job.of(edition), file)
    if not job.rerank:
        return _result(file, recall_both_ways(corpus_of(file), cosines, cosines))
    of_images, of_texts = first_of_rows(cosines, job.rerank), first_of_rows(cosines.T, job.rerank).T
    file, (scores, cosines, of_images, of_texts) = _matched(
        job, file, of_images | of_texts, (cosines, of_images, of_texts)
    )
    corpus = corpus_of(file)
    again = recall_both_ways(corpus, _only(scores, of_images), _only(scores, of_texts))
    values = recall_both_ways(corpus, cosines, cosines)
    values |= {f"reranked_{name}": figure for name, figure in again.items()}
    return _result(file, values, reranked=job.rerank)


def embedding_edition(archive: Path, manifest: Manifest, folder: Path) -> Path:
    """Return an archive of task embed with the graphs and the code of one of task match."""
    unpack_archive(archive, folder / "match")
    members = {name: folder / "match" / name for name in manifest.files}
    members["handlers/embed.py"] = project_file("handlers/embed.py")
    draft = draft_of(manifest) | {"task": "embed", "probes": []}
    return pack_members(folder / "embed", draft, members)


def _embeds_both(manifest: Manifest) -> bool:
    return all(
        graph in manifest.graphs
        and any(tensor.name == f"{graph}_embedding" for tensor in manifest.graphs[graph].outputs)
        for graph in ("image", "text")
    )


def _embedded(job: Job, file: Paired) -> tuple[Paired, Scores]:
    """Return what has a vector, and the cosine of every image with every text of it."""
    corpus = corpus_of(file)
    requests = [job.look(look) for look in corpus.looks]
    requests += [{"text": text} for text in corpus.texts]
    answers = job.ask(requests, "images and texts")
    reasons: Reasons = {}
    vectors: list[list[float]] = []
    for place, answer in enumerate(answers):
        if isinstance(answer, Refused):
            text = place - len(corpus.looks)
            lines = lines_of_image(corpus, place) if text < 0 else [corpus.lines[text]]
            reasons |= dict.fromkeys(lines, answer.reason)
            vectors.append([])
        else:
            vectors.append(answer["embedding"])
    file = job.leave_out(file, reasons)
    images, texts = corpus.places_without(reasons.keys())
    of_images = np.array([vectors[image] for image in images])
    of_texts = np.array([vectors[len(corpus.looks) + text] for text in texts])
    return file, of_images @ of_texts.T


def _matched(
    job: Job, file: Paired, pairs: Seen, matrices: tuple[Any, ...]
) -> tuple[Paired, tuple[Any, ...]]:
    """Return what could be matched, and the match scores of those pairs, -inf of the rest. With it
    ``matrices`` of the same shape, of what is left."""
    corpus = corpus_of(file)
    indices = [(int(image), int(text)) for image, text in np.argwhere(pairs)]
    requests = [
        {**job.look(corpus.looks[image]), "text": corpus.texts[text]} for image, text in indices
    ]
    scores = np.full(pairs.shape, -np.inf)
    refusals: dict[tuple[int, int], str] = {}
    for pair, answer in zip(indices, job.ask(requests, "pairs"), strict=True):
        if isinstance(answer, Refused):
            refusals[pair] = answer.reason
        else:
            scores[pair] = answer["itm_score"]
    reasons = _to_blame(corpus, refusals)
    places = np.ix_(*corpus.places_without(reasons.keys()))
    return job.leave_out(file, reasons), tuple(matrix[places] for matrix in (scores, *matrices))


def _to_blame(corpus: Corpus, refusals: Mapping[tuple[int, int], str]) -> Reasons:
    """Return the lines whose own image and text cannot be matched; and of pairs that are refused
    without those, the text's."""
    own = {
        corpus.lines[text]: reason
        for (image, text), reason in refusals.items()
        if corpus.owners[text] == image
    }
    images, texts = (set(places) for places in corpus.places_without(own.keys()))
    of_texts = {
        corpus.lines[text]: reason
        for (image, text), reason in refusals.items()
        if image in images and text in texts
    }
    return own | of_texts


def _only(scores: Scores, pairs: Seen) -> Scores:
    return np.where(pairs, scores, -np.inf)


def _result(file: Paired, values: Mapping[str, ArrayLike], **more: int) -> Result:
    corpus = corpus_of(file)
    counts = {"items": len(file.items), "images": len(corpus.looks), "texts": len(corpus.texts)}
    return Result({**counts, **more, **means(values)}, file.bad_lines)
