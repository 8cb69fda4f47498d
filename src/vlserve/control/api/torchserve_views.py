"""Models and versions as TorchServe's management API shows them. Pure.

TorchServe knows what is loaded alone: a version that was unloaded, or could not be loaded, is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlserve.control.domain import ModelStatus, State, VersionStatus
from vlserve.control.engine.adopted_settings import settings_with
from vlserve.control.tuning import of_engine
from vlserve.control.wire.torchserve import (
    ListedModel,
    ModelList,
    QueueState,
    VersionDescription,
    WorkerState,
)
from vlserve.errors import VersionNotFound
from vlserve.settings_sections import EngineSettings


def registered(model: ModelStatus) -> list[VersionStatus]:
    """Return the versions that TorchServe would know, by their numbers."""
    versions = [
        each for each in model.versions if each.state.loaded or each.state is State.DRAINING
    ]
    return sorted(versions, key=lambda each: each.version)


def formerly_called(models: Iterable[ModelStatus], name: str) -> ModelStatus | None:
    """Return the model with a version that was adopted under this name."""
    for model in models:
        for version in model.versions:
            if version.manifest.adopted and version.manifest.adopted.name == name:
                return model
    return None


def default_of(model: ModelStatus) -> VersionStatus:
    """Return the version with the traffic; before a release, the newest.

    Raises:
        VersionNotFound: none is loaded.
    """
    versions = registered(model)
    if not versions:
        raise VersionNotFound(f"no version of {model.model} is loaded")
    return next((each for each in versions if each.version == model.stable), versions[-1])


def version_of(model: ModelStatus, number: str) -> VersionStatus:
    """Return a version by its number as a path has it.

    Raises:
        VersionNotFound: there is none that is loaded.
    """
    for version in registered(model):
        if _is(version, number):
            return version
    raise VersionNotFound(f"Model version: {number} does not exist for model: {model.model}")


def releasable(model: ModelStatus, number: str) -> VersionStatus:
    """Return a version by its number; one that was unloaded is loaded again for its release.

    Raises:
        VersionNotFound: there is none.
    """
    for version in model.versions:
        if _is(version, number):
            return version
    raise VersionNotFound(f"Model version {number} does not exist for model {model.model}")


def _is(version: VersionStatus, number: str) -> bool:
    """Return whether a path's word is a version's number; of an adopted one, also the former."""
    adoption = version.manifest.adopted
    former = adoption.version if adoption else f"{version.version}.0"
    return number in (str(version.version), former)


def listed(models: Iterable[ModelStatus], limit: int, start: int) -> ModelList:
    """Return ``limit`` models that have a loaded version, the one at ``start`` first."""
    entries = sorted((each for each in models if registered(each)), key=lambda each: each.model)
    end = start + limit
    return ModelList(
        next_page_token=str(end) if end < len(entries) else None,
        models=tuple(
            ListedModel(model_name=model.model, model_url=default_of(model).archive.name)
            for model in entries[start:end]
        ),
    )


def described(
    version: VersionStatus, *, settings: EngineSettings, metadata: Mapping[str, Any] | None = None
) -> VersionDescription:
    """Return a version as TorchServe describes it; ``metadata``: its customized metadata."""
    tuning = version.tuning.serving if version.tuning else None
    own = settings_with(settings, tuning, version.manifest.adopted)
    serving, workers = of_engine(own), own.workers
    return VersionDescription(
        model_name=version.model,
        model_version=str(version.version),
        model_url=version.archive.name,
        engine=version.engine,
        min_workers=workers,
        max_workers=workers,
        batch_size=serving.batch_size,
        max_batch_delay=serving.max_batch_delay_ms,
        response_timeout=own.response_timeout_s,
        startup_timeout=round(own.load_timeout_s),
        workers=tuple(_workers(version, workers)),
        job_queue_status=QueueState(
            remaining_capacity=max(0, settings.queue_size - version.pending),
            pending_requests=version.pending,
        ),
        customized_metadata=metadata,
    )


def _workers(version: VersionStatus, count: int) -> Sequence[WorkerState]:
    """Return the workers of every instance. Ready are those of a version that may be asked."""
    return [
        WorkerState(
            id=f"{instance}-{number}",
            start_time=version.changed_at.replace("+00:00", "Z"),
            status="READY" if version.state.routable and number <= ready else "UNLOADING",
        )
        for instance, ready in sorted(version.workers_ready.items())
        for number in range(1, max(count, ready) + 1)
    ]


def own_metadata(version: VersionStatus) -> dict[str, str]:
    """Return what an archive that was exported here says of itself."""
    return {name: getattr(version, name) for name in ("task", "family", "precision", "sha256")}
