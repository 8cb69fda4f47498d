"""Triton's entry point: the requests of a batch in, an archive's statuses and JSON bodies out.

The installed worker (vlserve_worker/triton_model.py) reads Triton's tensors, refuses what cannot be
read, and asks this for the rest.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlserve.runtime.answering import Answering
from vlserve.runtime.exchange import RAW_HEADERS
from vlserve.runtime.task import Surroundings


class TritonModel:
    """One worker of one version."""

    def __init__(
        self, folder: Path, threads: int, batch_size: int, answer_log: Path | None
    ) -> None:
        """Open the unpacked archive in ``folder``; raises when it is not what was packed.

        Args:
            threads: that a graph computes on.
            batch_size: most requests in a batch.
            answer_log: the file that answers are logged in, for a release to compare them.
        """
        # The worker that computes on a GPU sees that one alone (vlserve_worker/device.py).
        gpu_id = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") else None
        around = Surroundings(batch_size=batch_size, gpu_id=gpu_id)
        self.answering = Answering(folder, threads, around, answer_log)

    def answer(
        self, data: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> list[tuple[int, str, bytes] | tuple[int, str, bytes, Mapping[str, str]]]:
        """Return status, Server-Timing and JSON body of each request, in order; to a client's
        request of an adopted archive also the headers that its handler set.

        Args:
            data: the fields of each request, or its ``body``, in bytes; to an adopted archive that
                and its ``headers``.
            ids: the X-Request-Id of each.
        """
        result = self.answering.answer(data, ids)
        timing = result.timing
        return [
            (status, timing, body, headers) if RAW_HEADERS in item else (status, timing, body)
            for item, status, headers, body in zip(
                data, result.statuses, result.headers, result.bodies, strict=True
            )
        ]

    def close(self) -> None:
        self.answering.close()
