"""A start of Triton begins bare, and takes away nothing of anybody else's."""

from pathlib import Path

import pytest

from vlserve.stack import bare_triton, shared_memory
from vlserve.stack.bare_triton import bare


def test_it_empties_its_own_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, temporary, regions = (tmp_path / name for name in ("engine-0", "run", "shm"))
    for file in (
        folder / "repository" / "tagger-1" / "config.pbtxt",
        folder / "store" / "tagger-1.json",
        temporary / "left",
        regions / "vlserve-ours-1",
        regions / "vlserve-other-1",
        tmp_path / "everybody" / "file",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setattr(shared_memory, "FOLDER", regions)
    monkeypatch.setattr(bare_triton, "triton_home", lambda: tmp_path / "triton")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "everybody"))
    tokens = bare(folder, "vlserve-ours-", temporary).split()
    assert len(set(tokens)) == 3
    for name in ("repository", "store"):
        assert list((folder / name).iterdir()) == []
    assert list(temporary.iterdir()) == []
    assert [region.name for region in regions.iterdir()] == ["vlserve-other-1"]
    assert (tmp_path / "everybody" / "file").is_file()
