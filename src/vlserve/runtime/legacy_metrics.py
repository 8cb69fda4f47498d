"""What a handler finds as ``context.metrics``: TorchServe's own where it runs, else nothing that
counts. A metric never fails a request."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


class QuietMetrics:
    """Hands every call on to ``metrics``, and swallows what it raises."""

    def __init__(self, metrics: Any = None) -> None:
        self.__dict__["_metrics"] = metrics

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(self._metrics, name, None)
        if attribute is not None and not callable(attribute):
            return attribute

        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                result = attribute(*arguments, **keywords) if attribute is not None else None
            except Exception as error:  # a metric that metrics.yaml does not list, a wrong type
                logger.warning("metric %s: %s", name, error)
                result = None
            return QuietMetrics(result)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if self._metrics is not None:
            setattr(self._metrics, name, value)
