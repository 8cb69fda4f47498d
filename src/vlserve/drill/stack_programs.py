"""Tell the processes of a stack apart, on either engine."""

import psutil

_MARKS = {
    "supervisord": ("supervisor.supervisord",),
    "worker": ("model_service_worker.py", "triton_python_backend_stub"),
    "engine": ("org.pytorch.serve.ModelServer", "bin/tritonserver"),
    "gateway": ("envoy.json",),
    "control": ("vlserve.control.api.app",),
}
"""Program -> what its command line holds, on one engine or the other, and no other's does."""


def program_of(process: psutil.Process) -> str:
    """Return which program a process of a stack is: supervisord, engine, worker, gateway or
    control; empty for another one, and for one that has ended."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    return next(
        (name for name, marks in _MARKS.items() if any(mark in command for mark in marks)), ""
    )
