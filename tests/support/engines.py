"""Which engine a test runs on.

Whatever asks for the fixture ``engine_kind``, as by ``stack``, runs on the engine of
VLSERVE_ENGINE__KIND, TorchServe by default. What is marked ``on_triton`` runs on Triton as well: in
`make test-long` on the stack that files share, in `make test-triton` on a stack of its own; with
``on_triton(tier="long")`` in `make test-long` either way, and with ``on_triton(tier="same")`` where
the test itself is.
"""

import os
from typing import Any

import pytest

from support.running_triton import need_triton
from vlserve.control.domain import EngineKind
from vlserve.settings_sections import EngineSettings

on_triton = pytest.mark.on_triton
"""Of tests, or of a module by ``pytestmark``."""


SHARED = "stack"
"""The fixture of the stack that files share. A test on it costs no start of another stack."""

_TIERS: dict[str, Any] = {"triton": pytest.mark.triton, "long": pytest.mark.long, "same": ()}


def torchserve_only(reason: str) -> pytest.MarkDecorator:
    """Return the marker of a test, or of a parameter, that says something of TorchServe alone."""
    return pytest.mark.torchserve_only(reason)


def chosen_kind() -> EngineKind:
    """Return the engine of VLSERVE_ENGINE__KIND, else the default."""
    name = os.environ.get("VLSERVE_ENGINE__KIND")
    return EngineSettings(kind=name).kind if name else EngineSettings().kind  # type: ignore[arg-type]


def parametrise(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``engine_kind`` on the engines that it is for."""
    if "engine_kind" in metafunc.fixturenames:
        tier = "long" if SHARED in metafunc.fixturenames else "triton"
        kinds = _kinds_of(metafunc.definition, tier)
        metafunc.parametrize("engine_kind", kinds, indirect=True, scope="session")


def skip_what_is_of_another_engine(item: pytest.Item) -> None:
    """Mark a test for TorchServe alone to be skipped where it would run on another engine."""
    only = item.get_closest_marker("torchserve_only")
    if only and kind_of(item) != "torchserve":
        item.add_marker(pytest.mark.skip(reason=f"of TorchServe alone: {only.args[0]}"))


def kind_of(item: pytest.Item) -> EngineKind:
    """Return the engine that a collected test runs on."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    kind: EngineKind = parameters.get("engine_kind", chosen_kind())
    return kind


def usable(kind: EngineKind) -> EngineKind:
    """Return ``kind``; skip the test where Triton cannot run on this machine."""
    if kind != "torchserve":
        need_triton()
    return kind


def _kinds_of(item: pytest.Item, tier: str) -> list[Any]:
    """Return the engines of a test; ``tier``: where it runs on Triton, if its marker says none."""
    kind = chosen_kind()
    marker = item.get_closest_marker("on_triton")
    if kind != "torchserve" or marker is None or item.get_closest_marker("torchserve_only"):
        return [kind]
    return [
        kind,
        pytest.param("triton", marks=_TIERS[marker.kwargs.get("tier", tier)]),
    ]
