"""How a version is served: as it was tuned; else, where it was adopted, as its archive says."""

from contextlib import suppress
from pathlib import Path

from vlserve.control.tuning import Serving, tuned
from vlserve.runtime.archive import manifest_of
from vlserve.runtime.errors import ArchiveError
from vlserve.runtime.manifest import Adopted
from vlserve.settings_sections import EngineSettings


def settings_of(settings: EngineSettings, serving: Serving | None, archive: Path) -> EngineSettings:
    """Return the engine's settings for the version in ``archive``."""
    adoption = None
    with suppress(ArchiveError):  # the engine says what is wrong with it
        adoption = manifest_of(archive).adopted
    return settings_with(settings, serving, adoption)


def settings_with(
    settings: EngineSettings, serving: Serving | None, adoption: Adopted | None
) -> EngineSettings:
    """Return the engine's settings for a version of which the archive says this."""
    own = settings.model_copy(update=_said_by(adoption, settings)) if adoption else settings
    return tuned(own, serving)


def _said_by(adoption: Adopted, settings: EngineSettings) -> dict[str, float]:
    """Return what the archive says of batches, workers and time: handlers rely on their own batch
    size, and many read a batch's first request alone. Its workers have the longer of both times to
    start."""
    values = {
        "batch_size": adoption.batch_size,
        "max_batch_delay_ms": adoption.max_batch_delay_ms,
        "workers": adoption.workers,
        "response_timeout_s": adoption.response_timeout_s,
        "load_timeout_s": max(settings.load_timeout_s, float(adoption.startup_timeout_s or 0)),
    }
    return {name: value for name, value in values.items() if value is not None}
