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
    adopted = None
    with suppress(ArchiveError):  # the engine says what is wrong with it
        adopted = manifest_of(archive).adopted
    return settings_with(settings, serving, adopted)


def settings_with(
    settings: EngineSettings, serving: Serving | None, adopted: Adopted | None
) -> EngineSettings:
    """Return the engine's settings for a version of which the archive says this."""
    own = settings.model_copy(update=_said_by(adopted, settings)) if adopted else settings
    return tuned(own, serving)


def _said_by(adopted: Adopted, settings: EngineSettings) -> dict[str, float]:
    """Return what the archive says of batches, workers and time: handlers rely on their own batch
    size, and many read a batch's first request alone. Its workers have the longer of both times to
    start."""
    said = {
        "batch_size": adopted.batch_size,
        "max_batch_delay_ms": adopted.max_batch_delay_ms,
        "workers": adopted.workers,
        "response_timeout_s": adopted.response_timeout_s,
        "load_timeout_s": max(settings.load_timeout_s, float(adopted.startup_timeout_s or 0)),
    }
    return {name: value for name, value in said.items() if value is not None}
