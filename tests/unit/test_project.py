"""The project folder: which one it is, and whose files win."""

from pathlib import Path

import pytest

from vlserve.project import (
    FOLDERS,
    MARKER,
    LayeredFolder,
    find_project_dir,
    is_checkout,
    packaged_dir,
    project_file,
    project_folder,
)
from vlserve.settings import Settings


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLSERVE_PROJECT_DIR", raising=False)


def write(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_the_variable_names_the_project_wherever_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "near" / MARKER)
    monkeypatch.chdir(tmp_path / "near")
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path / "named"))
    assert find_project_dir() == tmp_path / "named"
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", "named")
    assert find_project_dir() == tmp_path / "near" / "named"


def test_without_it_the_nearest_marked_folder_or_checkout_upwards_is_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "checkout" / "inside" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_project_dir() == deep
    write(tmp_path / "checkout" / "src" / "vlserve" / "__init__.py")
    write(tmp_path / "checkout" / "pyproject.toml", '[project]\nname = "vlserve"\n')
    assert find_project_dir() == tmp_path / "checkout"
    write(tmp_path / "checkout" / "inside" / MARKER)
    assert find_project_dir() == tmp_path / "checkout" / "inside"


def test_a_folder_with_another_projects_file_is_no_checkout(tmp_path: Path) -> None:
    write(tmp_path / "src" / "vlserve" / "__init__.py")
    assert not is_checkout(tmp_path)
    write(tmp_path / "pyproject.toml", '[project]\nname = "other"\n')
    assert not is_checkout(tmp_path)
    write(tmp_path / "pyproject.toml", "[project")
    assert not is_checkout(tmp_path)


def test_a_file_of_the_project_wins_and_the_packaged_ones_stand_behind_it(tmp_path: Path) -> None:
    package = packaged_dir()
    own = write(tmp_path / "handlers" / "tag.py", "own")
    assert project_file("handlers/tag.py", tmp_path) == own
    behind = project_file("handlers/caption.py", tmp_path)
    assert behind == package / "handlers" / "caption.py"
    assert behind.is_file()


def test_two_layers_list_each_file_once_sorted(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for file in (upper / "b.py", upper / "c.py", lower / "a.py", lower / "b.py", lower / "d.txt"):
        write(file)
    folder = LayeredFolder(upper, lower)
    assert list(folder.glob("*.py")) == [lower / "a.py", upper / "b.py", upper / "c.py"]
    assert list(LayeredFolder(tmp_path / "absent", lower).glob("*.txt")) == [lower / "d.txt"]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_is_packaged(tmp_path: Path, name: str) -> None:
    files = [file for file in project_folder(name, tmp_path).glob("**/*") if file.is_file()]
    assert files
    assert all(file.is_relative_to(packaged_dir() / name) for file in files)


def test_settings_read_the_projects_file_of_its_own_configuration(tmp_path: Path) -> None:
    settings = Settings(project_dir=tmp_path)
    assert settings.config_file("rollout.yaml") == packaged_dir() / "serving_config/rollout.yaml"
    own = write(tmp_path / "serving_config" / "rollout.yaml")
    assert settings.config_file("rollout.yaml") == own
    assert settings.state_dir == tmp_path / ".vlserve"
    assert settings.model_store == tmp_path / "model_store"


def test_every_setting_is_described() -> None:
    for section in (Settings, *Settings.model_fields.values()):
        model = section if section is Settings else section.annotation  # type: ignore[union-attr]
        for name, field in getattr(model, "model_fields", {}).items():
            assert field.description, f"{model}.{name} has no description"
