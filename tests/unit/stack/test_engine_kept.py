"""An upgrade keeps the engine that a model store was served by, whatever the default is."""

from pathlib import Path

import pytest

from vlserve.control.domain import EngineKind, State
from vlserve.control.store.database import LEDGER
from vlserve.control.store.kept_archives import engines_in_use
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import stack

Placed = tuple[EngineKind, State]


def ledger(store: Path, *versions: Placed, with_engines: bool = True) -> None:
    import sqlite3
    from contextlib import closing

    store.mkdir()
    engine = ", engine TEXT" if with_engines else ""
    with closing(sqlite3.connect(store / LEDGER)) as connection, connection:
        connection.execute(f"CREATE TABLE versions (state TEXT{engine})")
        for kind, state in versions:
            values = (state.value, kind) if with_engines else (state.value,)
            marks = ", ".join("?" for _ in values)
            connection.execute(f"INSERT INTO versions VALUES ({marks})", values)


def started(tmp_path: Path, default: EngineKind, choice: EngineKind | None = None) -> str:
    """Return the engine that a stack is started with where ``default`` is the default."""
    engine = EngineSettings(**({"kind": choice} if choice else {}))
    if not choice:
        object.__setattr__(engine, "kind", default)  # and nobody chose it
        assert "kind" not in engine.model_fields_set
    settings = Settings(state_dir=tmp_path / "state", model_store=tmp_path / "store", engine=engine)
    return stack._with_engine_of_models(settings, lambda line: None).engine.kind


@pytest.mark.parametrize(
    ("versions", "default", "kind"),
    [
        ([("torchserve", State.STABLE)], "triton", "torchserve"),
        ([("torchserve", State.STABLE)], "torchserve", "torchserve"),
        ([("triton", State.READY)], "torchserve", "triton"),
        ([("triton", State.READY), ("torchserve", State.STABLE)], "torchserve", "both"),
        ([("torchserve", State.RETIRED)], "triton", "triton"),
        ([], "triton", "triton"),
    ],
)
def test_what_serves_stays_where_nobody_chose(
    versions: list[Placed], default: EngineKind, kind: str, tmp_path: Path
) -> None:
    ledger(tmp_path / "store", *versions)
    assert started(tmp_path, default) == kind


def test_a_ledger_of_before_there_were_two_engines_is_on_torchserve(tmp_path: Path) -> None:
    ledger(tmp_path / "store", ("torchserve", State.STABLE), with_engines=False)
    assert engines_in_use(tmp_path / "store") == {"torchserve"}
    assert started(tmp_path, "triton") == "torchserve"


def test_who_chooses_gets_it_and_a_new_store_gets_the_default(tmp_path: Path) -> None:
    assert started(tmp_path, "triton") == "triton"
    ledger(tmp_path / "store", ("torchserve", State.STABLE))
    assert started(tmp_path, "torchserve", choice="triton") == "triton"
