"""What captions are worth, in this process or in workers beside it."""

import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from vlserve.training.metrics.coco_captions import CiderD

Captions = Sequence[str]
_scorer: CiderD | None = None


class Rewards:
    """CIDEr-D with the document frequencies of a ``corpus``, by ``workers`` processes; 0: by this
    one. A caption is worth the same whoever scores it. The workers end with this object's process.
    """

    def __init__(self, corpus: Sequence[Captions], workers: int) -> None:
        self._own = None if workers else CiderD(corpus)
        self._workers = workers
        self._pool: Any = None
        if workers:
            self._pool = ProcessPoolExecutor(
                workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(corpus,),
            )

    def __call__(self, candidates: Captions, references: Sequence[Captions]) -> list[float]:
        """Of each candidate against its own references."""
        if self._own is not None:
            return self._own(candidates, references)
        parts = np.array_split(np.arange(len(candidates)), self._workers)
        jobs = [
            self._pool.submit(
                _score, [candidates[place] for place in part], [references[place] for place in part]
            )
            for part in parts
            if len(part)
        ]
        return [score for job in jobs for score in job.result()]


def _begin(corpus: Sequence[Captions]) -> None:
    """Make a worker ready. Ctrl-C is for the run, whose step is finished first."""
    global _scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _scorer = CiderD(corpus)


def _score(candidates: Captions, references: Sequence[Captions]) -> list[float]:
    assert _scorer is not None
    return _scorer(candidates, references)
