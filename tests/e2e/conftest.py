"""Fixtures: the whole stack, shared; the gateway alone; stand-in engines. Always stopped."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.adopted_models import AdoptedModels, Adoptions
from support.engines import parametrise, skip_what_is_of_another_engine, usable
from support.fake_torchserve import FakeTorchServe
from support.file_order import shares_stack
from support.running_stack import RunningGateway, running_gateway
from support.running_triton import RunningTriton, need_triton, running_triton
from support.shadow_copies import ALL_COPIED, TIMEOUT_S, Engines, apply_copies
from support.shared_stack import SharedStack
from vlserve.control.domain import EngineKind
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.testing import RunningStack

_names = itertools.count(1)
_SHARED_STACK = pytest.StashKey[SharedStack]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrise(metafunc)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            skip_what_is_of_another_engine(item)


@pytest.hookimpl(wrapper=True, trylast=True)  # within what captures output
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """End the shared stack with the last file that asks for it: one that idles costs a tenth of a
    core and more."""
    yield
    if _SHARED_STACK in item.config.stash and not (nextitem and shares_stack(nextitem.path)):
        item.config.stash[_SHARED_STACK].end()


@pytest.fixture(scope="session")
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """The engine that the test runs on."""
    return usable(request.param)


@pytest.fixture(scope="session")
def shared_stack(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedStack]:
    shared_stack = SharedStack(lambda: tmp_path_factory.mktemp("stack"))
    pytestconfig.stash[_SHARED_STACK] = shared_stack
    yield shared_stack
    shared_stack.end()


@pytest.fixture(scope="module")
def stack(engine_kind: EngineKind, shared_stack: SharedStack) -> RunningStack:
    """Engine, gateway and control service under supervisord, shared by all files: each test uses
    model names of its own (`new_model`), and leaves every process up."""
    return shared_stack.on(engine_kind)


@pytest.fixture
def new_model() -> str:
    """A model name that no other test uses."""
    return f"model-{next(_names)}"


@pytest.fixture(scope="session")
def adoptions(tmp_path_factory: pytest.TempPathFactory) -> Adoptions:
    """Archives of torch-model-archiver, adopted when they are first asked for."""
    return Adoptions(tmp_path_factory.mktemp("adoptions"))


@pytest.fixture(scope="module")
def adopted_models(stack: RunningStack, adoptions: Adoptions) -> AdoptedModels:
    """The same, registered and released, by their former names."""
    return AdoptedModels(stack, adoptions)


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """The gateway alone; tests route what they need."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), timeout_s=5.0) as gateway:
        yield gateway


@pytest.fixture
def engines() -> Iterator[tuple[FakeTorchServe, FakeTorchServe]]:
    """Two stand-in engine instances, each with its own token."""
    with ExitStack() as resources:
        yield (
            resources.enter_context(FakeTorchServe("engine-0", "token-of-0")),
            resources.enter_context(FakeTorchServe("engine-1", "token-of-1")),
        )


@pytest.fixture(scope="session")
def echo_7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 of an Echo model, `m`, whose graph fails on 坏."""
    return pack_echo(tmp_path_factory.mktemp("echo"), "m", 7, fail_on_id=VOCABULARY["坏"])


@pytest.fixture(scope="session")
def triton(echo_7: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A Triton that serves `echo_7`, without gateway and control service."""
    need_triton()
    with running_triton(tmp_path_factory.mktemp("triton"), [echo_7]) as triton:
        yield triton


@pytest.fixture(scope="module")
def shadow_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway alone, of short timeouts, for copies of requests."""
    with running_gateway(tmp_path_factory.mktemp("shadow"), timeout_s=TIMEOUT_S) as gateway:
        yield gateway


@pytest.fixture
def copying_gateway(shadow_gateway: RunningGateway, engines: Engines) -> RunningGateway:
    """Every request to tagger is copied."""
    apply_copies(shadow_gateway, engines, ALL_COPIED)
    return shadow_gateway
