"""What may lie in which folder of a stack."""

from pathlib import Path

import pytest

from vlserve.errors import SettingsError, StackError
from vlserve.settings import Settings
from vlserve.stack import stack
from vlserve.stack.containers import render
from vlserve.stack.folders import make_private, refuse_store_in_state


@pytest.mark.parametrize("store", [".vlserve", ".vlserve/model_store", "x/../.vlserve/a/b"])
def test_a_store_in_what_may_be_deleted_is_refused(store: str, tmp_path: Path) -> None:
    settings = Settings(project_dir=tmp_path, model_store=Path(store))
    for start in (refuse_store_in_state, render, lambda settings: stack.up(settings, print)):
        with pytest.raises(SettingsError, match="VLSERVE_MODEL_STORE"):
            start(settings)
    assert not (tmp_path / ".vlserve" / "supervisor").exists()


def test_a_store_beside_it_and_around_it_is_not(tmp_path: Path) -> None:
    for store in ("model_store", ".vlserve-store", "."):
        refuse_store_in_state(Settings(project_dir=tmp_path, model_store=Path(store)))


def test_a_folder_of_others_is_no_private_one(tmp_path: Path) -> None:
    open_to_all, link = tmp_path / "open", tmp_path / "link"
    open_to_all.mkdir(mode=0o755)
    link.symlink_to(tmp_path / "new")
    (tmp_path / "new").mkdir(mode=0o700)
    for folder in (open_to_all, link):
        with pytest.raises(StackError, match="mode 700"):
            make_private(folder)
    make_private(tmp_path / "new")
