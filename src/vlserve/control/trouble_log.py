"""Troubles that are met again at every tick: logged when they come, change or go."""

import logging


class TroubleLog:
    """What was last logged of each part. For one thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._troubles: dict[str, str] = {}

    def note(self, part: str, trouble: str) -> None:
        """Log the trouble of ``part`` if it is another one than before; empty: it is well."""
        if trouble != self._troubles.get(part, ""):
            self._logger.warning("%s: %s", part, trouble or "well again")
        self._troubles[part] = trouble
