"""The handler of an adopted archive, found, started and called by TorchServe's own rules; its
``ts`` is the installed torchserve."""

import importlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.runtime.exchange import RawAnswer
from vlserve.runtime.legacy_answer import (
    INVALID_OUTPUT,
    MISMATCHED,
    HandlerFailed,
    answer_item,
    encoded,
    failed_by,
)
from vlserve.runtime.legacy_folder import enter_private_copy
from vlserve.runtime.legacy_metrics import QuietMetrics
from vlserve.runtime.legacy_request import LegacyRequest
from vlserve.runtime.legacy_threads import limit_onnx_threads
from vlserve.runtime.manifest import Adopted
from vlserve.runtime.task import Surroundings

TRUST = "VLSERVE_TRUST"
"""Environment variable of a stack's processes: the settings ``trust``, as JSON."""
PIECES = "send_intermediate_predict_response"
"""What handlers call that answer in pieces."""
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

EntryPoint = Callable[[Any, Any], Any]

logger = logging.getLogger(__name__)


class LegacyHandler:
    """A started handler. It gets one batch at a time, whoever calls."""

    def __init__(self, folder: Path, name: str, adopted: Adopted, around: Surroundings) -> None:
        """Start the handler of the archive in ``folder`` in this process, whose working folder and
        import path become its own. ``name`` tells its private copies from others'. Raises whatever
        the handler's code raises."""
        if adopted.sha256 not in json.loads(os.environ.get(TRUST, "{}")).get("pickle", ()):
            os.environ[WEIGHTS_ONLY] = "1"
        copy = enter_private_copy(folder, name)
        limit_onnx_threads(copy)
        self._adopted = adopted
        self._lock = threading.Lock()
        self._pieces: dict[str, bytearray] = {}
        if adopted.joins_pieces:
            self._collect_pieces()
        self._context = _context(copy, adopted, around)
        self._entry, initialize = _entry_point(copy, adopted)
        initialize(self._context)

    def answer(self, requests: Sequence[LegacyRequest]) -> list[RawAnswer]:
        """Return the answers to a batch, in its order. Raises HandlerFailed."""
        from ts.context import RequestProcessor

        with self._lock:
            context = self._context
            self._pieces = {}
            context.request_processor = [
                RequestProcessor(request.properties) for request in requests
            ]
            context.request_ids = {at: request.request_id for at, request in enumerate(requests)}
            context.metrics.request_ids = context.request_ids
            results = self._called([request.data for request in requests])
            return [self._answer(at, result) for at, result in enumerate(results)]

    def _called(self, data: list[dict[str, Any]]) -> list[Any]:
        number = len(data)  # an envelope may change the list
        try:
            results = self._entry(data, self._context)
        except Exception as error:
            logger.warning("the handler failed on %d requests", number, exc_info=True)
            raise failed_by(error) from error
        if not isinstance(results, list):
            logger.warning("the handler returned %s, not a list", type(results).__name__)
            raise HandlerFailed(503, INVALID_OUTPUT, splits=False)
        if len(results) != number:
            logger.warning("the handler returned %d results for %d", len(results), number)
            raise HandlerFailed(503, MISMATCHED)
        return results

    def _answer(self, at: int, result: Any) -> RawAnswer:
        status, _ = self._context.get_response_status(at)
        pieces = bytes(self._pieces.get(self._context.request_ids[at], b""))
        return answer_item(result, status, self._context.get_response_headers(at), pieces)

    def _collect_pieces(self) -> None:
        """Have what the handler sends before its result kept for it."""

        def keep(results: Any, ids: dict[int, str], *arguments: Any, **keywords: Any) -> None:
            for at, request_id in ids.items():
                self._pieces.setdefault(request_id, bytearray()).extend(encoded(results[at]))

        for module in ("ts.handler_utils.utils", "ts.protocol.otf_message_handler"):
            setattr(importlib.import_module(module), PIECES, keep)


def _context(folder: Path, adopted: Adopted, around: Surroundings) -> Any:
    import ts
    from ts.context import Context
    from ts.utils.util import get_yaml_config

    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
    config_file = manifest.get("model", {}).get("configFile")
    return Context(
        adopted.name,
        str(folder),
        manifest,
        around.batch_size,
        around.gpu_id,
        ts.__version__,
        adopted.limits_pixels,
        QuietMetrics(around.metrics),
        get_yaml_config(str(folder / config_file)) if config_file else {},
    )


@dataclass(frozen=True)
class Entry:
    """Where a handler is: ``function`` of the archive's own ``module``, else TorchServe's own
    module ``default``."""

    module: str
    function: str
    default: str


def entry_of(handler: str) -> Entry:
    """Return where the handler is that torch-model-archiver was told of: a file or
    ``file:function``."""
    file, _, function = handler.partition(":")
    module = file.removesuffix(".py").rsplit("/", 1)[-1]
    return Entry(module, function or "handle", f"ts.torch_handler.{file}")


def _entry_point(folder: Path, adopted: Adopted) -> tuple[EntryPoint, Callable[[Any], Any]]:
    """Return what is called for a batch, and what is called once before."""
    location = entry_of(adopted.handler)
    module = _module(folder, location)
    entry: EntryPoint
    initialize: Callable[[Any], Any]
    if hasattr(module, location.function):
        entry = function = getattr(module, location.function)

        def initialize(context: Any) -> Any:
            return function(None, context)
    else:
        entry, initialize = _of_class(module)
    if adopted.envelope:
        entry = _envelope(adopted.envelope)(entry).handle
    return entry, initialize


def _module(folder: Path, entry: Entry) -> Any:
    """Import the archive's own file, else TorchServe's handler of that name."""
    own = folder / entry.module
    if own.with_name(f"{own.name}.py").is_file() or own.is_dir():
        return importlib.import_module(entry.module)
    with suppress(ModuleNotFoundError):
        return importlib.import_module(entry.module)
    return importlib.import_module(entry.default)


def _of_class(module: Any) -> tuple[EntryPoint, Callable[[Any], Any]]:
    from ts.utils.util import list_classes_from_module

    classes = list_classes_from_module(module)
    if len(classes) != 1:
        names = " and ".join(cls.__name__ for cls in classes) or "no class"
        raise ValueError(
            f"{module.__name__} defines {names}: TorchServe wants one class, or a function handle"
        )
    handler = classes[0]()
    if not hasattr(handler, "handle"):
        raise ValueError(f"{classes[0].__name__} has no method handle")
    return handler.handle, handler.initialize


def _envelope(name: str) -> Any:
    from ts.utils.util import list_classes_from_module

    module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
    return list_classes_from_module(module)[0]
