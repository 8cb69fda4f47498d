"""What `vlserve feedback --export` writes of marks and of inputs that were kept."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vlserve.cli import app, feedback
from vlserve.control.captures import FOLDER
from vlserve.control.wire.views import MarkView
from vlserve_worker.capture import keep_input

HOSTILE_ID = "../a/\u202e"


def _mark(request_id: str, candidate: int, label: str) -> MarkView:
    return MarkView(
        model="tagger",
        request_id=request_id,
        stable=1,
        candidate=candidate,
        right="neither",
        label=label,
        marked_at="2026-11-30T00:00:00+00:00",
    )


def _export(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *marks: MarkView
) -> list[dict[str, str]]:
    """Export marks into ``folder``, with the inputs that are kept there; return the lines."""
    client = SimpleNamespace(marks=lambda _: list(marks))
    monkeypatch.setattr(feedback, "control_client", lambda: nullcontext(client))
    monkeypatch.setattr(feedback, "stack_settings", lambda: SimpleNamespace(state_dir=folder))
    out = folder / "labels.jsonl"
    result = CliRunner().invoke(app, ["feedback", "tagger", "--export", str(out)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert f"{len(lines)} labels" in result.output
    return lines


def test_a_request_has_one_line_with_its_newest_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = (_mark("a", 2, "food"), _mark("b", 2, "cars"), _mark("a", 3, "cooking"))
    lines = _export(monkeypatch, tmp_path, *marks, _mark("b", 3, ""))
    assert lines == [{"id": "a", "label": "cooking"}, {"id": "b", "label": "cars"}]


def test_an_image_has_the_same_name_in_each_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / FOLDER / "tagger"
    folder.mkdir(parents=True)
    for request_id in ("a", HOSTILE_ID):
        keep_input(folder, request_id, {"image": request_id.encode()}, 10**6)
    (last,) = _export(monkeypatch, tmp_path, _mark(HOSTILE_ID, 2, "food"))
    lines = _export(monkeypatch, tmp_path, _mark("a", 2, "cars"), _mark(HOSTILE_ID, 2, "food"))
    assert lines[1] == last
    images = [(tmp_path / line["img"]).read_bytes() for line in lines]
    assert images == [b"a", HOSTILE_ID.encode()]
