"""`vlserve batch` and `vlserve tag` as commands: what their exit codes and reports say."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from support.batch_rows import output, rows_of, write_jsonl
from support.echo_archive import pack_echo_dual
from vlserve.cli import app
from vlserve.errors import BatchError
from vlserve_worker.batch_files import OWN_COLUMNS


def test_failed_rows_change_the_exit_code_above_a_rate_alone(covers: Path, tmp_path: Path) -> None:
    rows = rows_of(10, row3={"img": "absent.jpg"}, row7={"img": "absent.jpg"})
    file, out = write_jsonl(covers / "rate.jsonl", rows), tmp_path / "out"
    joined_file, archive = tmp_path / "all.jsonl", covers / "tagger-1.mar"
    command = ["tag", str(archive), "--input", str(file), "--output", str(out)]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["rows"], report["failed"]) == (10, 2)
    assert report["errors"] == {"image_unreadable": 2}
    assert report["sha256"] == sha256(archive.read_bytes()).hexdigest()
    assert Path(report["archive"]) == archive

    command[0] = "batch"
    strict = CliRunner().invoke(app, [*command, "--max-error-rate", "0.19"])
    assert strict.exit_code == 1 and isinstance(strict.exception, BatchError)
    assert "2 of 10 rows failed, more than --max-error-rate 0.19" in str(strict.exception)
    lenient = CliRunner().invoke(
        app, [*command, "--max-error-rate", "0.2", "--joined", str(joined_file)]
    )
    assert lenient.exit_code == 0, lenient.output
    assert [json.loads(line) for line in joined_file.read_bytes().splitlines()] == output(out)


@pytest.mark.parametrize("name", [*OWN_COLUMNS, "tags"])
@pytest.mark.parametrize("command", ["batch", "tag"])
def test_a_kept_column_takes_no_place_of_the_outputs_own(
    command: str, name: str, covers: Path, tmp_path: Path
) -> None:
    out, archive = tmp_path / "out", covers / "tagger-1.mar"
    words = [command, str(archive), "--input", str(covers), "--output", str(out)]
    result = CliRunner().invoke(app, [*words, "--keep", f"views,{name}"], standalone_mode=False)
    assert isinstance(result.exception, BadParameter)
    assert (result.exception.exit_code, result.exception.param_hint) == (2, "--keep")
    assert f"{name}: the output has {name} of its own" in str(result.exception)
    assert not out.exists()


def test_tag_insists_on_its_task(covers: Path, tmp_path: Path) -> None:
    file = write_jsonl(covers / "rate.jsonl", rows_of(1))
    archive = pack_echo_dual(tmp_path, task="embed")
    command = ["tag", str(archive), "--input", str(file), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert str(result.exception) == "dual-1.mar is of task embed: use `vlserve batch`"
    assert not (tmp_path / "out").exists()
