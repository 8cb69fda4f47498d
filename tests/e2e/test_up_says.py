"""`vlserve up` where an archive or the ledger is lost: it says at once what, and what to do."""

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
from vlserve.stack import stack

pytestmark = on_triton


@pytest.mark.long
def test_up_says_which_archive_is_lost_and_the_others_serve(
    engine_kind: EngineKind, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, engine_kind)
    archives = {name: pack_echo(tmp_path, name, 1) for name in ("lost", "other")}

    def status(model: str) -> int:
        url = f"{settings.gateway_url}/predictions/{model}"
        return httpx.post(url, json=QUESTION, trust_env=False, timeout=60).status_code

    try:
        stack.up(settings, print)
        with ControlClient.of(settings) as control:
            for name, archive in archives.items():
                control.register(archive)
                control.release(name, 1)
        stack.down(settings, print)
        (settings.model_store / "lost" / "1" / "lost-1.mar").unlink()
        with pytest.raises(
            StackUnwell, match=r"lost 1 cannot be loaded again: .*lost-1.mar is gone"
        ):
            stack.up(settings, print)
        assert (status("lost"), status("other")) == (503, 200)
        with ControlClient.of(settings) as control:
            assert control.register(archives["lost"]).restored
            wait_until(lambda: control.health().status == "ok", 30)
        assert status("lost") == 200
        stack.up(settings, print)
    finally:
        stack.down(settings, print)


@pytest.mark.long
def test_a_lost_ledger_is_refused_and_rebuilt(engine_kind: EngineKind, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, engine_kind)

    def version() -> int:
        url = f"{settings.gateway_url}/predictions/tagger"
        return int(httpx.post(url, json=QUESTION, trust_env=False, timeout=60).json()["version"])

    try:
        stack.up(settings, print)
        with ControlClient.of(settings) as control:
            for number in (1, 2):
                control.register(pack_echo(tmp_path, "tagger", number))
            control.release("tagger", 2)
        stack.down(settings, print)
        for file in settings.model_store.glob("ledger.sqlite*"):
            file.unlink()
        with pytest.raises(LedgerLost, match="`vlserve up --rebuild-ledger`"):
            stack.up(settings, print)
        assert stack.status(settings) == []
        said: list[str] = []
        stack.up(settings, said.append, rebuild=True)
        assert "tagger: versions 1, 2, all traffic to 2, as before" in said
        assert version() == 2
        with ControlClient.of(settings) as control:
            assert control.release("tagger", 1).previous == 2
    finally:
        stack.down(settings, print)
