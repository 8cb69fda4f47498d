"""Health tells that nobody starts anew what dies."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from support.running_stack import wait_until

_CHILD = """
import sys
from vlserve.control.reconcile.supervision import Supervision
supervision = Supervision()
print("ready", flush=True)
for _ in sys.stdin:
    print([trouble.message for trouble in supervision.troubles()], flush=True)
"""
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@contextmanager
def supervised() -> Iterator[subprocess.Popen[str]]:
    """Stands for supervisord; its child says its troubles at each line that it gets."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        try:
            yield parent
        finally:
            parent.kill()


def troubles(parent: subprocess.Popen[str]) -> str:
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    return parent.stdout.readline()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "is gone: what dies now stays dead; `vlserve up`"),
        (signal.SIGSTOP, "is suspended: what dies now stays dead; `vlserve up`"),
    ],
)
def test_a_parent_that_does_not_go_on_is_told(number: signal.Signals, message: str) -> None:
    with supervised() as parent:
        assert troubles(parent) == "[]\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(number)
        if number is signal.SIGKILL:
            parent.wait()
        wait_until(lambda: f"supervisord (pid {parent.pid}) {message}" in troubles(parent))
        if number is signal.SIGSTOP:
            parent.send_signal(signal.SIGCONT)
            wait_until(lambda: troubles(parent) == "[]\n")
        child.kill()
