"""`vlserve batch` with the model's name: the released version's answers are the gateway's."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from support.batch_rows import output, write_jsonl
from vlserve.cli import app
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

ROWS = 40
TITLES = ("", "cat", "a cute cat 1", "可爱的猫咪", "home cooking")


def cover(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 45), (number * 6, 200 - number * 5, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_answers_are_those_of_the_gateway(
    stack: RunningStack, new_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        stack.control.register(pack_echo(tmp_path, new_model, version, answer_shift=version))
    stack.control.release(new_model, 1)
    stack.control.release(new_model, 2)
    rows = [
        {"id": f"v{n}", "image": cover(n), "text": TITLES[n % len(TITLES)]} for n in range(ROWS)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "covers.parquet")
    monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: stack.settings)
    monkeypatch.setattr("vlserve.cli.batch.load_settings", lambda: stack.settings)
    command = ["tag", new_model, "--input", str(tmp_path / "covers.parquet")]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["version"], report["rows"], report["failed"]) == (2, ROWS, 0)
    for row, answer in zip(rows, output(tmp_path / "out"), strict=True):
        form = {"image": row["image"], "text": str(row["text"]).encode()}
        tags = stack.http.post(f"/predictions/{new_model}", files=form).json()["tags"]
        assert [tag["tag"] for tag in answer["tags"]] == [tag["tag"] for tag in tags]
        scores = [tag["score"] for tag in answer["tags"]]
        assert scores == pytest.approx([tag["score"] for tag in tags], abs=1e-6)


def test_a_model_without_a_released_version_is_said(
    stack: RunningStack, new_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.control.register(pack_echo(tmp_path, new_model, 1))
    monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: stack.settings)
    file = write_jsonl(tmp_path / "in.jsonl", [{"id": 1}])
    command = ["batch", new_model, "--input", str(file), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert f"{new_model} has no released version" in str(result.exception)
