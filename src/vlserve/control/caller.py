"""Who asked for what this thread does, and whether he still waits for it.

Long work asks between its steps, so that a caller who went away stops what nobody waits for. Work
that nobody asked for by a request (the tick) has no caller, and is never stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vlserve.errors import CallerGone

_name: ContextVar[str] = ContextVar("name", default="")
_key: ContextVar[str] = ContextVar("key", default="")
_gone: ContextVar[Callable[[], bool] | None] = ContextVar("gone", default=None)


@contextmanager
def working_for(has_left: Callable[[], bool]) -> Iterator[None]:
    """Do the ``with`` body for a caller of whom ``has_left`` says whether he went away."""
    token = _gone.set(has_left)
    try:
        yield
    finally:
        _gone.reset(token)


def is_gone() -> bool:
    """Return whether the caller of the present work went away."""
    has_left = _gone.get()
    return has_left is not None and has_left()


def refuse_if_gone(what: str) -> None:
    """Raise CallerGone, with ``what`` was not done, if the caller went away."""
    if is_gone():
        raise CallerGone(f"{what}: the caller went away")


@contextmanager
def named(name: str) -> Iterator[None]:
    """Do the ``with`` body for a caller who says that this is his name."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def name() -> str:
    """Return how the caller of the present work calls himself; empty where he did not say."""
    return _name.get()


@contextmanager
def known_by(key: str) -> Iterator[None]:
    """Do the ``with`` body for the holder of the key of this name."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def key() -> str:
    """Return the name of the key by which the present work was asked for; empty for what nobody
    asked for by a request."""
    return _key.get()
