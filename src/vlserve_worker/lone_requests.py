"""More threads for a request that comes alone.

A worker computes on few threads, because its neighbours are at work beside it: more would take
the cores from them. While none is, and the batch is a single request, the other cores idle. So each
ONNX graph is opened a second time, with more threads, and each run takes one session or the other.

Under load there are such moments too: a worker that is done gets the first request that comes,
alone, while its neighbour takes up its next batch. What tells them apart is the batch before.

The archive's code knows nothing of it, so archives of every age gain by it: it asks onnxruntime for
a session, and gets two in one, which use the same weights. What ONNX Runtime packs for its own
kernels of matrices, each session holds for itself.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlserve_worker.busy_workers import BusyWorkers

_COPIED = (
    "execution_mode",
    "inter_op_num_threads",
    "log_severity_level",
    "graph_optimization_level",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
)
"""Of SessionOptions, which cannot be copied; the code of archives sets no others."""
_WEIGHTS_APART = {
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}

logger = logging.getLogger(__name__)


class LoneRequests:
    """Says of each run of a graph whether it is for a request that is alone in the stack."""

    def __init__(self, busy: BusyWorkers, threads: int) -> None:
        """``threads``: of such a run."""
        self.threads = threads
        self._busy = busy
        self._requests = 0
        self._began_alone = False
        self._follows_lone = False

    @contextmanager
    def at_work(self, requests: int) -> Iterator[None]:
        """Count as busy with so many requests while the body runs."""
        self._follows_lone = self._began_alone
        self._began_alone = requests == 1 and not self._busy.others()
        self._requests = requests
        try:
            with self._busy.at_work():
                yield
        finally:
            self._requests = 0

    def is_alone(self) -> bool:
        """Return whether one request is being answered here, and none elsewhere, as when the batch
        before began here."""
        return self._requests == 1 and self._follows_lone and not self._busy.others()


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

    def open_session(graph: Any, sess_options: Any = None, *more: Any, **keywords: Any) -> Any:
        def open_with(file: Any, options: Any) -> Any:
            return session(file, options, *more, **keywords)

        if sess_options is None or not 0 < sess_options.intra_op_num_threads < requests.threads:
            return open_with(graph, sess_options)
        try:
            return _two_sessions(graph, sess_options, open_with, requests)
        except Exception as error:  # as of memory or of a disk that is full
            logger.warning("a request that comes alone gets no more threads: %s", error)
            return open_with(graph, sess_options)

    onnxruntime.InferenceSession = open_session


def _two_sessions(
    graph: Any, original: Any, open_with: Callable[[Any, Any], Any], requests: LoneRequests
) -> TwoSessions:
    """Write the graph as ONNX Runtime rearranges it, weights apart, and open that twice: it maps
    such weights, so that both sessions use the same. The files are gone when they are open."""
    from onnxruntime import GraphOptimizationLevel

    with TemporaryDirectory(prefix="graph-") as folder:
        file = str(Path(folder) / "graph.onnx")
        write_options = _copied(original, original.intra_op_num_threads)
        write_options.optimized_model_filepath = file
        for name, value in _WEIGHTS_APART.items():
            write_options.add_session_config_entry(name, value)
        open_with(graph, write_options)
        usual, lone = (
            _copied(original, threads)
            for threads in (original.intra_op_num_threads, requests.threads)
        )
        for options in (usual, lone):
            options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
        # Its threads sleep between two requests: the cores are the engine's and the gateway's then.
        lone.add_session_config_entry("session.force_spinning_stop", "1")
        return TwoSessions(open_with(file, usual), open_with(file, lone), requests)


def _copied(original: Any, threads: int) -> Any:
    """Return options as they were given, with other threads."""
    from onnxruntime import SessionOptions

    options = SessionOptions()
    for name in _COPIED:
        setattr(options, name, getattr(original, name))
    options.intra_op_num_threads = threads
    return options
