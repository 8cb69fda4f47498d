"""`vlserve up` where an archive or the ledger is lost: it says at once what, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.background_load import QUESTION
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.errors import LedgerLost, StackUnwell
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.stack import stack

pytestmark = on_triton


@dataclass(frozen=True)
class Served:
    """A stack that is down, and served the models lost, other and, in two versions, tagger.
    ``archive``: of lost, as it was registered."""

    settings: Settings
    archive: Path

    def ask(self, model: str) -> httpx.Response:
        url = f"{self.settings.gateway_url}/predictions/{model}"
        return httpx.post(url, json=QUESTION, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def own_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("up-says")
    settings = make_settings(folder, engine_kind)
    lost_archive = pack_echo(folder, "lost", 1)
    try:
        stack.up(settings, print)
        with ControlClient.of(settings) as control:
            for archive in (lost_archive, pack_echo(folder, "other", 1)):
                report = control.register(archive)
                control.release(report.model, report.version)
            for version in (1, 2):
                control.register(pack_echo(folder, "tagger", version))
            control.release("tagger", 2)
        yield Served(settings, lost_archive)
    finally:
        stack.down(settings, print)


@pytest.fixture
def idle_stack(own_stack: Served) -> Served:
    """The stack, which is down; a test leaves all that it served in its store, up or down."""
    stack.down(own_stack.settings, print)
    return own_stack


@pytest.mark.long
def test_up_says_which_archive_is_lost_and_the_others_serve(idle_stack: Served) -> None:
    settings = idle_stack.settings
    (settings.model_store / "lost" / "1" / "lost-1.mar").unlink()
    with pytest.raises(StackUnwell, match=r"lost 1 cannot be loaded again: .*lost-1.mar is gone"):
        stack.up(settings, print)
    assert (idle_stack.ask("lost").status_code, idle_stack.ask("other").status_code) == (503, 200)
    with ControlClient.of(settings) as control:
        assert control.register(idle_stack.archive).restored
        wait_until(lambda: control.health().status == "ok", 30)
    assert idle_stack.ask("lost").status_code == 200
    stack.up(settings, print)


@pytest.mark.long
def test_a_lost_ledger_is_refused_and_rebuilt(idle_stack: Served) -> None:
    settings = idle_stack.settings
    for file in settings.model_store.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(LedgerLost, match="`vlserve up --rebuild-ledger`"):
        stack.up(settings, print)
    assert stack.status(settings) == []
    messages: list[str] = []
    stack.up(settings, messages.append, rebuild=True)
    assert "tagger: versions 1, 2, all traffic to 2, as before" in messages
    assert idle_stack.ask("tagger").json()["version"] == 2
    with ControlClient.of(settings) as control:
        assert control.release("tagger", 1).previous == 2
        control.release("tagger", 2)
