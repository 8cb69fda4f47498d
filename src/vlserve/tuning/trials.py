"""Measure settings on a stack that is up, under closed loops through its gateway."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vlserve.control.client import ControlClient
from vlserve.control.domain import State
from vlserve.control.tuning import Measured, Serving, Tuning
from vlserve.errors import LoadFailed, NotReady
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.processor import processor_name, usable_cores
from vlserve.runtime.archive import file_sha256, verify_archive
from vlserve.tuning.search import Point

Show = Callable[[str], None]
LENIENT_MS = 1e9
"""The runs themselves have no latency limit: the search judges."""


@dataclass(frozen=True)
class Load:
    """The load of each measurement."""

    data: Path | None
    """Dataset of the requests; None: they are made of the archive's probes."""
    seconds: int
    warm_up_s: int = 1


class Trials:
    """Loads an archive with one setting after the other, and measures it."""

    def __init__(
        self, archive: Path, control: ControlClient, gateway_url: str, load: Load, folder: Path
    ) -> None:
        self.archive = archive
        self._manifest = verify_archive(archive)
        self.sha256 = file_sha256(archive)
        self._control, self._url, self._load, self._folder = control, gateway_url, load, folder
        self._runs = 0

    def serve(self, serving: Serving) -> None:
        """Load the archive with this setting. ControlError: it is not loaded so."""
        model, version = self._manifest.model, self._manifest.version
        is_registered = any(
            view.version == version
            for model_view in self._control.models()
            if model_view.model == model
            for view in model_view.versions
        )
        if is_registered and self._control.unload(model, version).state is State.DRAINING:
            raise NotReady(f"{model} {version} still answers requests of the run before")
        unknown = Measured(connections=0, rps=0, p50_ms=0, p99_ms=0)
        outcome = self._control.register(self.archive, self.tuning(serving, 0, unknown))
        if outcome.untuned:
            raise LoadFailed(outcome.untuned)

    def measure(self, serving: Serving, connections: int, seconds: int | None = None) -> Point:
        """Measure the version as it is loaded now under so many connections."""
        self._runs += 1
        plan = StressPlan(
            url=self._url,
            model=self._manifest.model,
            version=self._manifest.version,
            archive=self.archive,
            data=self._load.data,
            users=connections,
            duration_s=seconds or self._load.seconds,
            warm_up_s=self._load.warm_up_s,
            max_error_rate=1.0,
            max_p99_ms=LENIENT_MS,
        )
        result = run_stress(plan, self._folder / f"run-{self._runs:03d}")
        figures = result.figures
        return Point(
            serving,
            connections,
            figures.rps,
            figures.p50_ms,
            figures.p99_ms,
            figures.error_rate,
            result.client_saturated,
        )

    def tuning(self, serving: Serving, slo_p99_ms: float, measurement: Measured) -> Tuning:
        """Return what is written beside the archive for this setting."""
        return Tuning(
            archive_sha256=self.sha256,
            serving=serving,
            slo_p99_ms=slo_p99_ms,
            measured=measurement,
            machine=machine(),
            tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def machine() -> str:
    """Return the name of the processor and its number of cores."""
    cores = f"{usable_cores()} cores"
    return ", ".join(filter(None, (processor_name(), cores)))
