"""What a worker says as it ends without an exception, for whoever asks why a version did not load:
TorchServe knows the exit code, and tells nobody."""

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def last_words() -> Iterator[None]:
    """Write to stderr how this process ends: the exit code of `sys.exit` and `os._exit`, and the
    signal of a crash. What it forks ends without a word."""
    faulthandler.enable()
    process, end = os.getpid(), os._exit

    def tell_and_end(status: int) -> NoReturn:
        if os.getpid() == process:
            _tell(status)
        end(status)

    os._exit = tell_and_end
    try:
        yield
    except SystemExit as error:
        _tell(error.code if isinstance(error.code, int) else int(error.code is not None))
        raise


def _tell(code: int) -> None:
    sys.stderr.flush()
    os.write(2, f"the worker ended with exit code {code}\n".encode())
