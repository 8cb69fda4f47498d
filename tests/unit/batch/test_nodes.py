"""What a node of a cluster checks and keeps; without Ray."""

from pathlib import Path

import pytest

from vlserve.batch.locks import Shard, locked
from vlserve.batch.shipment import imported_packages, packed_program
from vlserve.errors import BatchError
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import MANIFEST, read_manifest
from vlserve_worker.batch_node import UnpackedArchive, _node_lock, check_node


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output in which the driver has written its token, ``abc``."""
    state = tmp_path / "out" / ".vlserve"
    state.mkdir(parents=True)
    (state / "check-abc").write_text("abc", encoding="utf-8")
    return tmp_path / "out"


def test_a_node_that_has_all_has_no_troubles(out: Path) -> None:
    assert not check_node(["numpy"], [str(out.parent)], str(out), "abc")
    assert [file.name for file in (out / ".vlserve").iterdir()] == ["check-abc"]


@pytest.mark.parametrize(
    ("packages", "source", "token", "trouble"),
    [
        (("no_such_package", "numpy"), ".", "abc", "it lacks the packages no_such_package"),
        ((), "absent.parquet", "abc", "it does not see the input .*absent.parquet"),
        ((), ".", "def", "it does not see the output .*shared or object storage"),
    ],
)
def test_what_a_node_lacks_is_named(
    out: Path, packages: tuple[str, ...], source: str, token: str, trouble: str
) -> None:
    troubles = check_node(packages, [str(out.parent / source)], str(out), token)
    assert len(troubles) == 1
    with pytest.raises(ValueError, match=trouble):
        raise ValueError(troubles[0])


def test_an_archive_is_unpacked_once_and_goes_with_the_last_worker(
    echo_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    downloads: list[bytes] = []

    def fetch() -> bytes:
        downloads.append(echo_archive.read_bytes())
        return downloads[0]

    digest = file_sha256(echo_archive)
    first, second = UnpackedArchive(digest, fetch), UnpackedArchive(digest, fetch)
    assert len(downloads) == 1 and (first.folder / MANIFEST).is_file()
    first.leave()
    assert (second.folder / MANIFEST).is_file()
    second.leave()
    assert not list(first.folder.parent.iterdir())
    with pytest.raises(ValueError, match="the archive that arrived is not"):
        UnpackedArchive("0" * 64, fetch)


def test_a_job_waits_for_the_workers_of_nodes(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlserve.batch.locks.WAIT_FOR_LOCK_S", 0.1)
    lock = _node_lock(str(out))
    assert lock is not None
    import os

    try:
        with pytest.raises(BatchError, match="another job"), locked(out / ".vlserve", out, Shard()):
            pass
    finally:
        os.close(lock)
    with locked(out / ".vlserve", out, Shard()):
        os.close(_node_lock(str(out)) or -1)  # its own nodes' workers may write


def test_the_packages_that_an_archive_imports_are_known(echo_folder: Path) -> None:
    manifest = read_manifest((echo_folder / MANIFEST).read_bytes())
    packages = imported_packages(echo_folder, manifest, has_tables=True)
    assert {"numpy", "PIL", "pydantic", "pyarrow"} <= set(packages)
    assert not {"onnxruntime", "torch", "vlserve", "vlserve_worker", "json", "av"} & set(packages)


def test_the_program_is_packed_whole() -> None:
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(packed_program())).namelist()
    assert {"vlserve_worker/batch.py", "vlserve_worker/video_decoder.py"} <= set(names)
