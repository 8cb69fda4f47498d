"""What tests of several folders share."""

import gc
from collections.abc import Generator, Iterator
from functools import cache
from typing import Any

import httpx
import hypothesis
import pytest

from support.certificates import TestCertificate, make_certificate
from support.file_order import LONGEST, shared
from support.tiers import markers_of
from support.tiny_models import Archives
from vlserve.exporter.convert import Converter

# What a test finds must not depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


# A client loads the certificates that it trusts, which takes 27 ms: those of a process share them.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)  # type: ignore[assignment]
# A busy machine must not fail a test: whoever says no timeout waits longer than httpx's 5 s.
for ask in (httpx.Client.__init__, httpx.request, httpx.get, httpx.post, httpx.put, httpx.delete):
    ask.__kwdefaults__["timeout"] = 60.0  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what collection makes to no garbage collector: modules and 11,000 items live as long as
    the process, and each full pass over them takes half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the items of other tiers are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [*LONGEST.values(), None]
    items.sort(key=lambda item: names.index(shared(item.path)))
    for item in items:
        for marker in markers_of(getattr(item, "fixturenames", ())):
            item.add_marker(marker)


@pytest.hookimpl(optionalhook=True)  # the suite also runs without the plugin
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from support.file_scheduling import Together

    return Together(config, log)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TestCertificate:
    """A certificate and its key, for servers by TLS."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def converter() -> Iterator[Converter]:
    """One for all exports of a process: it takes seconds to import what an export needs."""
    with Converter() as converter:
        yield converter


@pytest.fixture(scope="session")
def archives(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archives]:
    """Archives of tiny models. Those that the selected tests name, as their parameters ``name``
    and ``format``, are exported in the background while the first ones are tested."""
    archives = Archives(tmp_path_factory.mktemp("archives"))
    cases = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    try:
        archives.begin(
            (case["name"], case["format"]) for case in cases if {"name", "format"} <= case.keys()
        )
        yield archives
    finally:
        archives.close()
