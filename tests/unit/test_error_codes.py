"""Each class of the error tree has a code of its own, which clients compare: it never changes."""

import pkgutil
import re
from collections import Counter
from importlib import import_module

import pytest

import vlserve.control
import vlserve.errors
from vlserve.control.api.errors import STATUS
from vlserve.errors import VlserveError, error_class, error_classes

CODES = {
    "ArchiveError": "archive_error",
    "ArchiveTampered": "archive_tampered",
    "ArchiveUnreadable": "archive_unreadable",
    "CheckpointMismatch": "checkpoint_mismatch",
    "ControlError": "control_error",
    "DataError": "data_error",
    "EngineUnavailable": "engine_unavailable",
    "EvidenceInvalid": "evidence_invalid",
    "ExportError": "export_error",
    "GatewayRefused": "gateway_refused",
    "LoadFailed": "load_failed",
    "ManifestInvalid": "manifest_invalid",
    "ModelNotFound": "model_not_found",
    "NoRelease": "no_release",
    "NotReady": "not_ready",
    "NothingToRollBackTo": "nothing_to_roll_back_to",
    "ParityFailed": "parity_failed",
    "PortBusy": "port_busy",
    "RecipeNotFound": "recipe_not_found",
    "ReleaseUnderWay": "release_under_way",
    "RequestError": "request_error",
    "SettingsError": "settings_error",
    "StackError": "stack_error",
    "StillServing": "still_serving",
    "StressError": "stress_error",
    "TrainingError": "training_error",
    "TuningInvalid": "tuning_invalid",
    "VersionConflict": "version_conflict",
    "VersionNotFound": "version_not_found",
    "VlserveError": "vlserve_error",
}
"""As the HTTP API gave them in 0.1.0, when they followed from the classes' names."""


@pytest.fixture(scope="module")
def classes() -> list[type[VlserveError]]:
    for module in pkgutil.walk_packages(vlserve.control.__path__, "vlserve.control."):
        import_module(module.name)
    return [kind for kind in error_classes() if kind.__module__.startswith("vlserve.")]


def test_codes_of_0_1_0_are_kept(classes: list[type[VlserveError]]) -> None:
    codes = {kind.__name__: kind.code for kind in classes}
    assert {name: codes.get(name) for name in CODES} == CODES


def test_each_class_has_a_code_of_its_own(classes: list[type[VlserveError]]) -> None:
    names = [kind.__name__ for kind in classes if "code" not in vars(kind)]
    assert names == []
    assert len({kind.code for kind in classes}) == len(classes)


def test_a_class_is_found_by_its_code(classes: list[type[VlserveError]]) -> None:
    assert all(error_class(kind.code) is kind for kind in classes)
    assert error_class("internal_error") is None


def test_the_tree_is_drawn_with_each_class_once(classes: list[type[VlserveError]]) -> None:
    counts = Counter(
        re.findall(r"^[│├└─ ]*([A-Z]\w+)\b", vlserve.errors.__doc__ or "", re.MULTILINE)
    )
    own = {kind.__name__ for kind in classes if not kind.__module__.startswith("vlserve.runtime")}
    names = own | {"VlserveError", "ArchiveError", "RequestError"}
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 1)


def test_no_status_is_hidden_by_the_one_of_a_parent_before_it() -> None:
    kinds = list(STATUS)
    hidden = [
        (parent.__name__, kind.__name__)
        for at, kind in enumerate(kinds)
        for parent in kinds[:at]
        if issubclass(kind, parent)
    ]
    assert hidden == []
