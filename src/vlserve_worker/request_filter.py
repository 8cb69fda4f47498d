"""What stands between an engine's worker and an archive's code: that gets what can be read, and a
request that may kill its worker runs alone.

What is refused here never reaches the archive: a body or a video that cannot be read, and a request
that kills workers. So old archives, which carry the code of their time, refuse in the same words,
and so do all engines.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve_worker import image_limits, video
from vlserve_worker.bodies import TOO_COMPLEX, TOO_LARGE, UNREADABLE, BodyRefused, unwrap_body
from vlserve_worker.capture import Capture
from vlserve_worker.crash_notes import (
    REFUSED_S,
    BatchNotes,
    Suspicions,
    digest_of,
    is_of_a_client,
)
from vlserve_worker.lone_requests import LoneRequests
from vlserve_worker.time_limit import ended_after, limit_of
from vlserve_worker.v2.messages import TOO_MANY_ITEMS
from vlserve_worker.video_parts import VideoParts

KILLED_WORKER = "request_killed_worker"
TOO_LATE = "items_too_late"
HTTP_STATUS = {
    UNREADABLE: 400,
    TOO_LARGE: 413,
    TOO_COMPLEX: 413,
    KILLED_WORKER: 500,
    image_limits.TOO_LARGE: 413,
    image_limits.TOO_COMPLEX: 413,
    video.UNREADABLE: 400,
    video.TOO_LARGE: 413,
    video.TOO_COMPLEX: 413,
    video.UNSUPPORTED: 415,
    TOO_MANY_ITEMS: 413,
    TOO_LATE: 503,
}
"""Code -> status; vlserve.runtime.errors has them too, and a test holds the two together."""

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Most bytes of an unpacked body where no instance's configuration says so."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """In the place of a request's values: why the archive does not get them."""

    code: str
    message: str

    @property
    def status(self) -> int:
        """The HTTP status that a client sees."""
        return HTTP_STATUS[self.code]

    def body(self, request_id: str) -> bytes:
        """Return the JSON body that a client gets."""
        error = {"code": self.code, "message": self.message}
        body = {"error": error, "request_id": request_id}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")


_LATE = Refusal(
    TOO_LATE, "the items before this one took too long: send fewer in one request, or try again"
)


@dataclass(frozen=True)
class Noted:
    """A request's values as the archive reads them, and what they are noted by. ``turn``: its place
    among the items of its request; every request's first ones run before any second one."""

    values: dict[str, Any]
    digest: str
    turn: int = 0


Run = Callable[[list[int], list[dict[str, Any]]], list[Any] | None]
"""Places in the batch and the values there -> an answer each, or None where that failed."""

Refuse = Callable[[int, Refusal], Any]
"""A place in the batch and why it is refused -> its answer."""


class RequestFilter:
    """Reads the requests of one version before its archive, and refuses some in its place."""

    def __init__(
        self,
        version: int,
        notes: BatchNotes | None,
        max_body_bytes: int,
        response_timeout_s: float | None = None,
        checks_images: bool = False,
        lone: LoneRequests | None = None,
        capture: Capture | None = None,
        leaves_raw: bool = False,
    ) -> None:
        """``checks_images``: whether the archive is too old to know what an image may cost.
        ``lone``: told of each batch, where a request that comes alone gets more threads.
        ``capture``: keeps inputs, where the operator said so.
        ``leaves_raw``: whether clients' bodies go to the archive as they came (adopted.py)."""
        self.version = version
        self._notes = notes
        self.max_body_bytes = max_body_bytes
        self._response_timeout_s = response_timeout_s
        self._checks_images = checks_images
        self._lone = lone
        self._capture = capture
        self._leaves_raw = leaves_raw
        self._seen = Suspicions()
        self._videos = VideoParts(response_timeout_s)

    def read_batch(
        self, batch: Sequence[dict[str, Any] | Refusal], shares: Sequence[int] = ()
    ) -> list[Refusal | str]:
        """Put the parts of bodies in their places in ``batch``, as TorchServe's worker reads it.
        Return of each request its digest, or why it is refused; what is refused already stays so.
        ``shares``: among how many each divides the batch's time, where not all do alike.
        """
        self._seen = self._notes.look() if self._notes else Suspicions()
        among = shares or [len(batch)] * len(batch)
        return [
            request if isinstance(request, Refusal) else self._read(request, share)
            for request, share in zip(batch, among, strict=True)
        ]

    def answer(
        self,
        data: Sequence[Refusal | Noted],
        run: Run,
        refuse: Refuse,
        batch_size: int = sys.maxsize,
    ) -> list[Any] | None:
        """Return one answer a request, in order: refusals by their own words, the others by
        ``run``, those that stood in a dead worker's note one by one after their neighbours. None:
        ``run`` failed. ``batch_size``: the most that run together."""
        answers: list[Any] = [None] * len(data)
        start, spent_s = time.monotonic(), 0.0
        for at, item in enumerate(data):
            if isinstance(item, Refusal):
                answers[at] = refuse(at, item)
        for places, alone in self._rounds(data, batch_size):
            if not alone and self._is_late(spent_s):
                for at in places:
                    answers[at] = refuse(at, _LATE)
                continue
            items = [item for at in places if isinstance(item := data[at], Noted)]
            with self._at_work([item.digest for item in items], alone, spent_s):
                results = run(places, [item.values for item in items])
            spent_s = time.monotonic() - start
            if results is None:
                return None
            for at, answer in zip(places, results, strict=True):
                answers[at] = answer
        return answers

    def _read(self, request: dict[str, Any], share: int) -> Refusal | str:
        digest = digest_of(request)
        # A probe is always the same: refused for what a busy machine did, it would keep the version
        # from being loaded again, or gone back to.
        if digest in self._seen.refused and is_of_a_client(request):
            return Refusal(
                KILLED_WORKER,
                "this request stopped the model's worker twice, by a crash or by taking too long: "
                f"it is refused for {REFUSED_S} s",
            )
        if self._leaves_raw and is_of_a_client(request):
            return digest
        try:
            unwrap_body(request, self.max_body_bytes)
            self._videos.to_images(request, share)
            if self._checks_images:
                image_limits.check_images(request)
        except (BodyRefused, video.VideoError) as error:
            return Refusal(error.code, error.message)
        except Exception as error:  # whatever is in it: it must not take the batch down
            logger.exception("a body could not be read")
            return Refusal(UNREADABLE, f"the body cannot be read ({type(error).__name__})")
        if self._capture is not None and is_of_a_client(request):
            self._capture.keep(request)
        return digest

    def _rounds(
        self, data: Sequence[Refusal | Noted], batch_size: int
    ) -> list[tuple[list[int], bool]]:
        """Return the places that run together, and whether that is a suspect by itself."""
        turns = {at: item.turn for at, item in enumerate(data) if isinstance(item, Noted)}
        places = sorted(turns, key=turns.__getitem__)
        suspects = [at for at in places if self._is_suspect(data[at])]
        good = [at for at in places if at not in suspects]
        runs = [good[at : at + batch_size] for at in range(0, len(good), batch_size)]
        return [*((run, False) for run in runs), *(([at], True) for at in suspects)]

    def _is_late(self, spent_s: float) -> bool:
        """Return whether half of the time is over that the engine gives a worker for a batch: what
        would only begin now might have the worker ended, and be suspected of it."""
        timeout_s = self._response_timeout_s
        return timeout_s is not None and spent_s > timeout_s / 2

    def _is_suspect(self, item: Refusal | Noted) -> bool:
        return isinstance(item, Noted) and item.digest in self._seen.suspects

    @contextmanager
    def _at_work(self, digests: Sequence[str], alone: bool, spent_s: float) -> Iterator[None]:
        """``spent_s``: on the batch before. Who runs alone so late that the engine may end the
        worker first, for what its neighbours took, is no more than a suspect by that."""
        timeout_s = self._response_timeout_s
        limit_s = None if timeout_s is None else limit_of(timeout_s, alone=alone)
        if not alone and limit_s is not None:
            limit_s -= spent_s
        if alone and timeout_s is not None and limit_s is not None:
            alone = spent_s + limit_s <= timeout_s
        note = self._notes.at_work(digests, alone=alone) if self._notes else nullcontext()
        count = self._lone.at_work(len(digests)) if self._lone else nullcontext()
        with note, count, ended_after(limit_s):
            yield


def open_notes(folder: Path) -> BatchNotes | None:
    """Return a worker's notes in ``folder``; None, with a warning, where it cannot be written."""
    try:
        return BatchNotes(folder)
    except OSError as error:
        logger.warning(
            "%s: batches are not noted, so a request that kills workers is not recognised: %s",
            folder,
            error,
        )
        return None
