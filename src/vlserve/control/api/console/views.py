"""What the service knows, gathered for the screens. Called in threads of `Threads`."""

from contextlib import suppress

from vlserve.control.api.console.evaluation import evaluated_figures
from vlserve.control.api.console.screens import (
    Screen,
    model_screen,
    now_screen,
    rollout_screen,
)
from vlserve.control.domain import RolloutStatus
from vlserve.control.gateway.recent_requests import ModelTraffic
from vlserve.control.rollouts.report import RolloutReport
from vlserve.control.service import ControlService
from vlserve.control.store.rows import step_name
from vlserve.errors import NoRelease, SettingsError, VersionNotFound

MOST_EVENTS = 300


def now(service: ControlService) -> Screen:
    """Gather what the screen Now shows."""
    models = service.models()
    names = [model.model for model in models]
    rollouts = {name: report for name in names if (report := _latest(service, name)) is not None}
    last = {name: event for name in names for event in service.changes(name, newest=1)}
    return now_screen(models, service.traffic(), rollouts, last, service.health())


def model(service: ControlService, name: str) -> Screen:
    """Gather the live part of the page of a model. ModelNotFound."""
    status = service.model(name)
    return model_screen(status, _traffic(service, name), _latest(service, name))


def policy(service: ControlService) -> Screen:
    """Gather rollout.yaml's entries for the form that starts a rollout, or what is wrong there."""
    try:
        return {"policy": service.rollouts.policy(), "policy_error": ""}
    except SettingsError as error:
        return {"policy": None, "policy_error": str(error)}


def rollout(service: ControlService, name: str) -> Screen:
    """Gather the live part of the page of a model's rollout. ModelNotFound."""
    service.model(name)
    report = _latest(service, name)
    if report is None:
        return {"rollout": None, "name": name}
    step = step_name(report.id, report.step)
    return {"name": name, **rollout_screen(report, _traffic(service, name), step)}


def worst_pairs(service: ControlService, name: str) -> Screen:
    """Gather the pairs that differ most, of a rollout whose candidate was taken back."""
    report = _latest(service, name)
    ended = report is not None and report.status in (
        RolloutStatus.ROLLED_BACK,
        RolloutStatus.ABORTED,
    )
    return {"worst": service.disagreements.worst(name, report.id) if report and ended else []}


def history(service: ControlService, name: str) -> Screen:
    """Gather what the history of a model shows, the newest first. ModelNotFound."""
    events = service.history(name, newest=MOST_EVENTS + 1)
    return {
        "name": name,
        "events": list(reversed(events[-MOST_EVENTS:])),
        "older": len(events) > MOST_EVENTS,
    }


def version(service: ControlService, name: str, number: int) -> Screen:
    """Gather what the page of a version shows. ModelNotFound, VersionNotFound."""
    status = service.model(name)
    versions = {each.version: each for each in status.versions}
    if number not in versions:
        raise VersionNotFound(f"{name} has no version {number}")
    subject, stable = versions[number], versions.get(status.stable or 0)
    labels = set(subject.manifest.labels or ())
    of_stable = labels if stable is None else set(stable.manifest.labels or ())
    size: int | None = None
    with suppress(OSError):
        size = subject.archive.stat().st_size
    return {
        "version": subject,
        "stable": status.stable,
        "goes_back": number in status.earlier,
        "size": size,
        "by": service.registered_by(name, number),
        "evaluated": evaluated_figures(subject.manifest.training),
        "added": sorted(labels - of_stable),
        "removed": sorted(of_stable - labels),
        "manifest": subject.manifest.model_dump_json(indent=2, exclude={"probes"}),
    }


def _latest(service: ControlService, name: str) -> RolloutReport | None:
    try:
        return service.rollouts.latest(name)
    except NoRelease:
        return None


def _traffic(service: ControlService, name: str) -> ModelTraffic:
    return service.traffic().get(name, ModelTraffic(model=name))
