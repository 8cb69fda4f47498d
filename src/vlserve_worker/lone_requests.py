"""More threads for a request that comes alone.

A worker computes on few threads, because its neighbours are at work beside it: more would take
the cores from them. While none is, and the batch is a single request, the other cores idle. So each
ONNX graph is opened a second time, with more threads, and each run takes one session or the other.

The archive's code knows nothing of it, so archives of every age gain by it: it asks onnxruntime for
a session, and gets two in one. The second holds the weights again (ONNX Runtime shares them between
two sessions of Python only where it does not rearrange them, which it does for most).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve_worker.busy_workers import BusyWorkers

BUSY_FILE = "busy"
"""In the stack's state_dir: what its workers lock while they are at work."""

logger = logging.getLogger(__name__)


class LoneRequests:
    """Says of each run of a graph whether it is for a request that is alone in the stack."""

    def __init__(self, busy: BusyWorkers, threads: int) -> None:
        """``threads``: of such a run."""
        self.threads = threads
        self._busy = busy
        self._requests = 0

    @contextmanager
    def at_work(self, requests: int) -> Iterator[None]:
        """Count as busy with so many requests while the body runs."""
        self._requests = requests
        try:
            with self._busy.at_work():
                yield
        finally:
            self._requests = 0

    def is_alone(self) -> bool:
        """Return whether one request is being answered here, and none elsewhere."""
        return self._requests == 1 and not self._busy.others()


@dataclass(frozen=True)
class TwoSessions:
    """Two sessions of one graph, in the place of one. What is asked of it but to run, ``usual``
    answers."""

    usual: Any
    lone: Any
    requests: LoneRequests

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any], *more: Any) -> Any:
        """Compute the outputs, on the threads that are free now."""
        session = self.lone if self.requests.is_alone() else self.usual
        return session.run(outputs, inputs, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.usual, name)


def lone_requests(archive: Path, threads: int, busy_file: Path) -> LoneRequests | None:
    """Have the graphs of the unpacked archive opened twice from now on; None where it has none
    for ONNX Runtime, or ``busy_file`` cannot be written, or ``threads`` are no more than one."""
    if threads <= 1 or not any((archive / "graphs").glob("*.onnx")):
        return None
    try:
        requests = LoneRequests(BusyWorkers(busy_file), threads)
    except OSError as error:
        logger.warning("%s: a request that comes alone gets no more threads: %s", busy_file, error)
        return None
    _open_twice(requests)
    return requests


def _open_twice(requests: LoneRequests) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return
    session: Any = onnxruntime.InferenceSession

    def opened(graph: Any, sess_options: Any = None, *more: Any, **options: Any) -> Any:
        usual = session(graph, sess_options, *more, **options)
        if sess_options is None or not 0 < sess_options.intra_op_num_threads < requests.threads:
            return usual
        threads = sess_options.intra_op_num_threads
        sess_options.intra_op_num_threads = requests.threads
        # Its threads sleep between two requests: the cores are the engine's and the gateway's then.
        sess_options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            return TwoSessions(usual, session(graph, sess_options, *more, **options), requests)
        except Exception as error:  # as of memory that is not there
            logger.warning("a request that comes alone gets no more threads: %s", error)
            return usual
        finally:
            sess_options.intra_op_num_threads = threads

    onnxruntime.InferenceSession = opened
