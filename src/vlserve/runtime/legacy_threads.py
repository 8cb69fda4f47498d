"""The version's own number of threads, for handlers that open ONNX graphs with as many as the
machine has cores, as TorchServe's BaseHandler does."""

import os
from pathlib import Path
from typing import Any


def limit_onnx_threads(folder: Path) -> None:
    """Have the sessions of this process compute on as many threads as OMP_NUM_THREADS says, where
    the archive in ``folder`` holds an ONNX graph."""
    if not any(folder.rglob("*.onnx")):
        return
    import onnxruntime

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    session: Any = onnxruntime.InferenceSession

    def open_session(graph: Any, sess_options: Any = None, *more: Any, **keywords: Any) -> Any:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        options.intra_op_num_threads = threads
        return session(graph, options, *more, **keywords)

    onnxruntime.InferenceSession = open_session
