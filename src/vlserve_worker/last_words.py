"""What a worker says as it ends, for whoever asks why a version did not load: TorchServe knows the
exit code, and tells nobody. An exception goes to a file, because TorchServe ceases to read what a
worker prints as soon as it has seen its end; the rest goes to stderr."""

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

FOLDER = "failed_loads"
"""Of the engine instance's folder; a file of it is named MODEL-VERSION."""


def tell_failed_loads(loader: Any, file: Path) -> None:
    """Have TorchServe's class of loaders write the exception of a load that fails to ``file``."""
    load: Callable[..., Any] = loader.load

    def load_or_tell(*arguments: Any, **options: Any) -> Any:
        try:
            return load(*arguments, **options)
        except Exception as error:
            _write(file, described(error))
            raise

    loader.load = load_or_tell


def described(error: BaseException) -> str:
    """Return the name and first line of the exception that began it. Where that one was raised
    again as another one (``raise … from``), it is the other's."""
    chain = [error]
    while (earlier := _earlier(chain[0])) is not None and earlier not in chain:
        chain.insert(0, earlier)
    first = 0
    while first + 1 < len(chain) and chain[first + 1].__cause__ is chain[first]:
        first += 1
    lines = traceback.format_exception_only(chain[first])
    message = next((line for line in lines if not line[0].isspace()), lines[-1]).splitlines()[0]
    return message.removeprefix(f"{type(chain[first]).__module__}.")


def _earlier(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _write(file: Path, words: str) -> None:
    """Put the words into the file at once; a disk that is full must not hide the exception."""
    whole = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(words, encoding="utf-8", errors="replace")
        whole.replace(file)
    except OSError as error:
        print(f"{file} cannot be written: {error}", file=sys.stderr, flush=True)


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
