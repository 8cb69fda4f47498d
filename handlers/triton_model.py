"""Triton's entry point: the requests of a batch in, an archive's statuses and JSON bodies out.

The installed worker (vlserve_worker/triton_model.py) reads Triton's tensors, refuses what cannot be
read, and asks this for the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlserve.runtime.answering import Answering


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
        self.answering = Answering(folder, threads, batch_size, answer_log)

    def answer(
        self, data: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> list[tuple[int, str, bytes]]:
        """Return status, Server-Timing and JSON body of each request, in order.

        Args:
            data: the fields of each request, or its ``body``, in bytes.
            ids: the X-Request-Id of each.
        """
        result = self.answering.answer(data, ids)
        timing = result.timing
        return [
            (status, timing, body)
            for status, body in zip(result.statuses, result.bodies, strict=True)
        ]

    def close(self) -> None:
        self.answering.close()
