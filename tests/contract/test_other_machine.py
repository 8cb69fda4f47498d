"""The command line from another machine: by an address and a key in the environment."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from support.control_api_server import RunningControl
from support.key_calls import named_keys
from vlserve.cli import app
from vlserve.cli.failures import explained
from vlserve.control.control_access import CA, KEY, KEY_FILE, URL, remote_access
from vlserve.control.named_keys import Role
from vlserve.errors import NotThisMachine, RoleMissing, SettingsError, StackDown, Unauthorized
from vlserve.settings import load_settings

Run = Callable[..., Result]
EVERYTHING = (Role.RELEASE, Role.REGISTER)


@pytest.fixture
def run(
    control_api: RunningControl,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a command as on a machine without a project, which has the key ci of all roles."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(Path.cwd()))
    monkeypatch.setenv(URL, control_api.url)
    monkeypatch.setenv(KEY, named_keys(control_api).add("ci", EVERYTHING))

    def run_command(*words: object, fails: bool = False) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert (result.exception is not None) is fails, result.output
        return result

    return run_command


def test_the_verbs_of_a_pipeline(
    control_api: RunningControl, run: Run, archives: list[Path]
) -> None:
    for archive in archives[:2]:
        run("register", archive)
    run("release", "tagger", 1)
    run("release", "tagger", 2, "--now")
    run("rollback", "tagger")
    run("release", "tagger", 2)
    run("pause", "tagger")
    run("abort", "tagger")
    run("unload", "tagger", 2)
    assert control_api.client.model("tagger").stable == 1
    status = run("status").output
    assert control_api.url in status and "tagger" in status
    assert json.loads(run("status", "--json").output)["models"][0]["stable"] == 1
    history = json.loads(run("history", "tagger", "--json").output)
    assert {event["detail"]["key"] for event in history if event["kind"] == "released"} == {"ci"}
    assert run("console", "--no-open").output.startswith(f"{control_api.url}/console/enter?code=")
    refusal = run("delete", "tagger", 2, fails=True)
    assert isinstance(refusal.exception, RoleMissing)
    refusals = run("keys", "refusals").output
    assert "ci" in refusals and "/delete" in refusals
    export = run("feedback", "tagger", "--export", "labels.jsonl")
    assert "on the machine of the stack" in export.output


@pytest.mark.parametrize(
    "words",
    [
        ("up",),
        ("down",),
        ("demo",),
        ("drill", "tagger"),
        ("stress", "tagger", "--gray-release"),
        ("keys", "add", "x", "--role", "read"),
        ("keys", "list"),
        ("keys", "revoke", "ci"),
    ],
    ids=" ".join,
)
def test_what_needs_the_machine_of_the_stack_says_so(
    control_api: RunningControl, run: Run, words: tuple[str, ...]
) -> None:
    result = run(*words, fails=True)
    assert isinstance(result.exception, NotThisMachine)
    assert control_api.url in str(result.exception) and URL in str(result.exception)


def test_the_way_back_without_the_service_is_not_taken_here(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, "http://127.0.0.1:9")
    for word in ("rollback", "abort"):
        down = run(word, "tagger", fails=True).exception
        assert isinstance(down, StackDown) and "on that machine alone" in str(down)
        assert "project folder" not in explained(down, [word])


def test_a_revoked_key_is_named_by_where_it_came_from(
    control_api: RunningControl, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ci.key"
    file.write_text(f"{named_keys(control_api).add('other', EVERYTHING)}\n", encoding="utf-8")
    monkeypatch.delenv(KEY)
    monkeypatch.setenv(KEY_FILE, str(file))
    run("history", "tagger", fails=True)
    named_keys(control_api).revoke("other")
    error = run("rollback", "tagger", fails=True).exception
    assert isinstance(error, Unauthorized)
    assert KEY_FILE in str(error) and "vlserve keys list" in str(error)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({KEY: "k"}, f"{KEY} is set, and {URL} is not"),
        ({URL: "https://a.example"}, f"set one of {KEY}"),
        ({URL: "https://a.example", KEY: "k", KEY_FILE: "f"}, f"set one of {KEY}"),
        ({URL: "https://a.example", KEY_FILE: "/nowhere"}, "No such file"),
        ({URL: "https://a.example", KEY_FILE: "/dev/null"}, "is empty"),
        ({URL: "https://a.example", KEY: "a\nb"}, "holds no key"),
        ({URL: "https://a.example", KEY: "k" * 200}, "holds no key"),
        ({URL: "http://a.example:8090", KEY: "k"}, "clear text"),
        ({URL: "http://10.0.0.1:8090", KEY: "k"}, "clear text"),
        ({URL: "https://user:secret@a.example", KEY: "k"}, "must be like"),
        ({URL: "https://a.example/path", KEY: "k"}, "must be like"),
        ({URL: "ftp://a.example", KEY: "k"}, "must be like"),
        ({URL: "a.example", KEY: "k"}, "must be like"),
        ({URL: "https://a.example:x", KEY: "k"}, "no address"),
    ],
)
def test_variables_that_cannot_work_are_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        remote_access(variables)
    assert "secret" not in str(error.value)


def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "none.pem", Path(__file__)):
        access = remote_access({URL: "https://a.example", KEY: "k", CA: str(file)})
        assert access is not None and access.url == "https://a.example"
        with pytest.raises(SettingsError, match=CA):
            access.trust()


def test_the_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    monkeypatch.setenv(URL, "https://a.example")
    monkeypatch.setenv(KEY, "hunter2")
    assert "hunter2" not in repr(load_settings())
    assert "hunter2" not in repr(remote_access())
