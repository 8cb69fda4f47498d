"""What `vlserve register` says of a tuning: in force, stored, removed, dropped."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vlserve.cli import app
from vlserve.control.domain import State
from vlserve.control.tuning import Measured, Serving, Tuning
from vlserve.control.wire.views import Registered

TUNING = Tuning(
    archive_sha256="0" * 64,
    serving=Serving(workers=1, threads=2, batch_size=4, max_batch_delay_ms=3),
    slo_p99_ms=100.0,
    measured=Measured(connections=4, rps=90.0, p50_ms=40.0, p99_ms=80.0),
    machine="2 cores",
    tuned_at="2026-01-31T09:30:00+00:00",
)


@pytest.mark.parametrize(
    ("tuning", "answer", "says"),
    [
        (TUNING, {}, "served as tuned: 1 x 2, batch 4, 3 ms"),
        (TUNING, {"untuned": "no memory"}, "so its tuning was dropped: no memory"),
        (
            TUNING,
            {"already_registered": True, "retuned": True},
            "tuning 1 x 2, batch 4, 3 ms stored, in force at its next load, it is ready",
        ),
        (
            None,
            {"already_registered": True, "retuned": True},
            "tuning removed, in force at its next load, it is ready",
        ),
        (TUNING, {"already_registered": True}, "nothing to do, it is ready"),
    ],
)
def test_what_register_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuning: Tuning | None,
    answer: dict[str, Any],
    says: str,
) -> None:
    fields = {"model": "m", "version": 1, "state": State.READY, "already_registered": False}
    control = SimpleNamespace(register=lambda *_: Registered.model_validate({**fields, **answer}))
    monkeypatch.setattr("vlserve.cli.versions.control_client", lambda: nullcontext(control))
    monkeypatch.setattr("vlserve.control.tuning.read_tuning", lambda _: tuning)
    archive = tmp_path / "m-1.mar"
    archive.touch()
    result = CliRunner().invoke(app, ["register", str(archive)])
    assert result.exit_code == 0
    assert says in " ".join(result.stdout.split())
    assert ("served as tuned" in result.stdout) is says.startswith("served as tuned")
