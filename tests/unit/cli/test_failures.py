"""What the command line says of what went wrong: what it happened to, and what to do."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.command_line import Run
from vlserve.cli import failures, main
from vlserve.cli.output import print_json, speak_any_encoding


@pytest.mark.parametrize("name", ["Tagger", "a/b", "..", "", "猫", "\udcff", "x" * 64, "tagger "])
@pytest.mark.parametrize(
    "words",
    [["release", 1], ["watch"], ["rollback"], ["unload", 1], ["history"], ["predict"], ["drill"]],
    ids=lambda words: words[0],
)
def test_a_name_that_no_model_has_is_named(run: Run, words: list[object], name: str) -> None:
    line = run(words[0], name, *words[1:]).line
    assert f"no model is called {name!r}".encode(errors="backslashreplace").decode() in line
    assert "lower-case" in line


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--weights", "5,3", "do not rise"),
        ("--weights", "5,x", "not a list"),
        ("--weights", "0,100", "greater than or equal to 1"),
        ("--weights", "5", "do not end at 100"),
        ("--weights", "", "not a list"),
        ("--hold", "soon", "not a time"),
        ("--hold", "9" * 400, "finite number"),
        ("--shadow", "101%", "less than or equal to 100"),
        ("--shadow", "half", "not a percentage"),
        ("--keep", "-5s", "not a time"),
    ],
)
def test_an_option_is_not_blamed_on_a_file(run: Run, option: str, value: str, reason: str) -> None:
    result = run("release", "tagger", 1, option, value)
    message = " ".join(result.err.replace("│", " ").split())
    assert (result.code, f"Invalid value for '{option}'" in message) == (2, True)
    assert reason in message
    assert "rollout.yaml" not in message


@pytest.mark.parametrize(
    "words",
    [
        ["stress", "tagger", "--rate", "inf"],
        ["stress", "tagger", "--max-p99-ms", "inf"],
        ["tune", "file", "--slo-p99-ms", "1e999"],
        ["tune", "file", "--slo-p99-ms", "50", "--minutes", "inf"],
    ],
)
def test_infinity_is_no_limit(run: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    result = run(*words)
    assert (result.code, "not a finite number" in result.err) == (2, True)


def test_variables_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLSERVE_ENGINE__WORKERS", "many")
    for words in (["status"], ["up"], ["down"], ["recipes"], ["history", "tagger"]):
        assert "engine.workers (VLSERVE_ENGINE__WORKERS)" in run(*words).line


def test_the_settings_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "serving_config").mkdir()
    (tmp_path / "serving_config" / "vlserve.yaml").write_bytes(b"\xff")
    for words in (["status"], ["up"], ["down"], ["recipes"], ["history", "tagger"]):
        assert "vlserve.yaml is not UTF-8" in run(*words).line


def test_a_folder_that_is_gone_is_no_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.delenv("VLSERVE_PROJECT_DIR")
    for words in (["status"], ["history", "tagger"], ["init", "here"], ["recipes"]):
        assert run(*words).code == 1


def test_a_file_in_the_way_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file/data" in run("demo-data", tmp_path / "file" / "data", "--items", 20).line
    assert "file/project" in run("init", tmp_path / "file" / "project").line


# A full disk


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_where_the_write_does_not_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if "out" in str(place) else 10**9)

    monkeypatch.setattr(failures.shutil, "disk_usage", usage)
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    for words in (["export", "--out", str(out)], ["demo-data", str(out)], [f"--out={out}"]):
        message = failures.explained(FULL, words)
        assert message == f"No space left on device: {out}. Free some, or choose another place"
    assert "this command writes" in failures.explained(FULL, [])
    error = OSError(errno.ENOSPC, "No space left on device", "/there/file")
    assert ": /there/file. " in failures.explained(error, [])


@pytest.mark.parametrize("words", [["recipes"], ["status", "--json"], ["--help"]])
def test_standard_output_that_is_full_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [Path(sys.executable).parent / "vlserve", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=120,
        )
    assert result.returncode == 1
    assert result.stderr.startswith("vlserve: No space left on device: ")
    assert len(result.stderr.splitlines()) == 1


# Terminals that are not UTF-8


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_a_terminal_without_the_characters_gets_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in raw.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding))
    folder = tmp_path / "模型😀"
    for words, code in ((["init", str(folder)], 0), (["register", str(folder / "无")], 2)):
        monkeypatch.setattr(sys, "argv", ["vlserve", *words])
        with pytest.raises(SystemExit) as system_exit:
            main()
        assert (system_exit.value.code or 0) == code
    sys.stdout.flush()
    output = raw["stdout"].getvalue().decode(encoding)
    assert "wrote " in output
    assert "\\U0001f600" in output


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_json_stays_json(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    speak_any_encoding()
    print_json({"text": "猫 😀 \udcff"[: -1 if encoding == "utf-8" else None]})
    sys.stdout.flush()
    assert json.loads(buffer.getvalue().decode(encoding))["text"].startswith("猫 😀 ")


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_the_script_runs_in_an_ascii_locale(tmp_path: Path, settings: dict[str, str]) -> None:
    folder = tmp_path / "模型"
    folder.mkdir()
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [Path(sys.executable).parent / "vlserve", "status"],
        env=environment | settings,
        cwd=folder,
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert b"is down: `vlserve up` starts it" in result.stdout


def test_a_copy_and_a_short_write_name_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    error = OSError(errno.ENOSPC, "No space left on device", "/from", None, "/to")
    assert failures.explained(error, []).startswith("No space left on device: /to. ")
    short = OSError("8192 requested and 0 written")
    assert failures.explained(short, []).startswith("No space left on device: ")
