"""What tests of several folders share."""

from collections.abc import Generator, Iterator

import hypothesis
import pytest
from tiny_models import Archives

# What a test finds must not depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

SHARED = ("archives", "stack")
"""Fixtures that take long to make: all tests of one run in the same process."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Which tests run together where several processes share the work (`make test`): those of one
    shared fixture, else those of one file."""
    for item in items:
        used = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        group = used[0] if used else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    return (yield)


@pytest.fixture(scope="session")
def archives(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archives]:
    """Archives of tiny models. Those that the selected tests name, as their parameters ``name``
    and ``format``, are exported in the background while the first ones are tested."""
    made = Archives(tmp_path_factory.mktemp("archives"))
    named = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    made.begin((one["name"], one["format"]) for one in named if {"name", "format"} <= one.keys())
    try:
        yield made
    finally:
        made.close()
