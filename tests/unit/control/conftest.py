"""An engine and a gateway in memory that keep the protocols' promises, and a control service on
them. Archives are real."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import Requests, register
from vlserve.control.assembly import Control, assemble
from vlserve.control.outcomes import Registration
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.settings_sections import ControlSettings

Archive = Callable[..., Path]
Register = Callable[..., Registration]
POLICY = Path(__file__).parents[3] / "serving_config" / "rollout.yaml"


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Packs an archive, once for the same arguments."""
    folder = tmp_path_factory.mktemp("archives")
    archives: dict[str, Path] = {}

    def pack(model: str = "tagger", version: int = 1, shift: int = 0) -> Path:
        name = f"{model}-{version}-{shift}"
        if name not in archives:
            archives[name] = pack_echo(folder / name, model, version, answer_shift=shift)
        return archives[name]

    return pack


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(
        project_dir=tmp_path, control=ControlSettings(tick_s=0.02, drain_timeout_s=0.3)
    )
    settings.config_dir.mkdir()
    shutil.copy(POLICY, settings.config_dir)
    return settings


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def control(settings: Settings, engine: FakeEngine, gateway: FakeGateway) -> Iterator[Control]:
    """Not ticking: a test ticks by hand, or starts it."""
    control = assemble(settings, engine, gateway)
    yield control
    control.stop()


@pytest.fixture
def tagger(control: Control, pack: Archive) -> Control:
    """tagger 1 stable, tagger 2 ready."""
    register(control, pack("tagger", 1), pack("tagger", 2))
    control.service.release("tagger", 1)
    control.reconciler.tick()
    return control


@pytest.fixture
def requests(settings: Settings, gateway: FakeGateway) -> Requests:
    return Requests(settings.state_dir / "logs", gateway)


@pytest.fixture(name="register")
def register_copy(control: Control, pack: Archive) -> Register:
    """Registers a copy of a packed archive, as the API does with an upload."""

    def do(
        version: int = 1, *, model: str = "tagger", shift: int = 0, name: str = ""
    ) -> Registration:
        file = control.service.incoming / f"{model}-{version}-{threading.get_ident()}.mar"
        shutil.copy(pack(model, version, shift), file)
        return control.service.register(file, name)

    return do


@pytest.fixture
def locks_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that another process holds is given up on at once."""
    monkeypatch.setattr("vlserve.control.store.database.LOCK_TIMEOUT_S", 0.05)
