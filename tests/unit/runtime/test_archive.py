"""A bad archive is refused with its reason before any of it runs."""

import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archive_members import Members, listed, written
from vlserve.runtime import zip_layout
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.errors import (
    ArchiveError,
    ArchiveTampered,
    ArchiveTooLarge,
    ArchiveUnreadable,
    ManifestInvalid,
)
from vlserve.runtime.manifest import MANIFEST, TORCHSERVE_MANIFEST


def test_a_good_archive(echo_archive: Path) -> None:
    manifest = verify_archive(echo_archive)
    assert (manifest.model, manifest.version, manifest.task) == ("echo", 3, "tag")


def test_verifying_imports_no_engine_and_runs_no_code_of_the_archive(
    members: Members, tmp_path: Path
) -> None:
    for name in [name for name in members if name.endswith(".py")]:
        members[name] = b"raise SystemExit('ran')"
    path = written(tmp_path, listed(members))
    code = (
        "import sys; from pathlib import Path; from vlserve.runtime.archive import verify_archive;"
        f"verify_archive(Path({str(path)!r}));"
        "assert not {'torch', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x00" * 500, b"hello" * 100])
def test_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m-1.mar"
    path.write_bytes(content)
    with pytest.raises(ArchiveUnreadable, match=r"m-1\.mar"):
        verify_archive(path)


def test_no_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnreadable, match="no archive"):
        verify_archive(tmp_path / "none.mar")
    with pytest.raises(ArchiveUnreadable):
        verify_archive(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(echo_archive: Path, tmp_path: Path, share: float) -> None:
    raw = echo_archive.read_bytes()
    path = tmp_path / "m-1.mar"
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ArchiveUnreadable):
        verify_archive(path)


def test_no_manifest(members: Members, tmp_path: Path) -> None:
    del members[MANIFEST]
    with pytest.raises(ArchiveUnreadable, match=r"no manifest\.json"):
        verify_archive(written(tmp_path, members))


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (b"{", "JSON"),
        (b"[]", "manifest"),
        (b"\xff\xfe", "JSON"),
        (b"{}", "model: Field required"),
    ],
)
def test_a_manifest_that_is_none(
    members: Members, tmp_path: Path, manifest: bytes, why: str
) -> None:
    with pytest.raises(ManifestInvalid, match=why):
        verify_archive(written(tmp_path, members | {MANIFEST: manifest}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 0}, "version"),
        ({"version": "latest"}, "version"),
        ({"version": True}, "version: Input should be a valid integer"),
        ({"version": "3"}, "version: Input should be a valid integer"),
        ({"version": 3.0}, "version: Input should be a valid integer"),
        ({"options": json.loads("[" * 150 + "]" * 150)}, "options"),
        ({"model": "../x"}, "model"),
        ({"labels": ["a", "a"]}, "labels repeat"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"graphs": {}}, "no graph"),
        ({"task": "paint"}, r"handlers/paint\.py"),
        ({"version": 4}, "modelVersion is '3', manifest.json says '4'"),
        ({"model": "other"}, "modelName is 'echo'"),
    ],
)
def test_manifests_that_contradict(
    members: Members, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ManifestInvalid, match=why):
        verify_archive(written(tmp_path, listed(members, **changes)))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"[]", b"{}", b'{"model": 3}'),
        b'{"model": {"modelName": "echo", "modelVersion": "3"}}',
        b'{"model": {"modelName": "echo", "modelVersion": "3", "handler": "other.py"}}',
        b'{"model": {"modelName": "echo", "modelVersion": 3, "handler": "torchserve_handler.py"}}',
    ],
)
def test_torchserves_manifest_must_agree(members: Members, tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ManifestInvalid, match="MAR-INF"):
        verify_archive(written(tmp_path, listed(members | {TORCHSERVE_MANIFEST: raw})))


def test_a_missing_tokenizer(members: Members, tmp_path: Path) -> None:
    name = "assets/vocabulary.json"
    del members[name]
    with pytest.raises(ArchiveTampered, match=f"{name}: missing"):
        verify_archive(written(tmp_path, members))
    with pytest.raises(ManifestInvalid, match=f"files does not list {name}"):
        verify_archive(written(tmp_path, listed(members)))


def test_every_member_is_watched(members: Members, tmp_path: Path) -> None:
    for name in members.keys() - {MANIFEST}:
        variant = members | {name: members[name] + b" "}
        with pytest.raises(ArchiveTampered, match=name.replace(".", r"\.")):
            verify_archive(written(tmp_path, variant))


def test_an_unlisted_member(members: Members, tmp_path: Path) -> None:
    with pytest.raises(ArchiveTampered, match=r"extra\.txt: not in the manifest"):
        verify_archive(written(tmp_path, members | {"extra.txt": b""}))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "a/../../up", "..\\up", "C:\\x", "a/..", "c:x"]
)
def test_names_that_leave_the_folder(members: Members, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveTampered, match="could leave its folder"):
        verify_archive(written(tmp_path, listed(members | {name: b"x"})))


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "a\u2028b", "a\u202eb"])
def test_names_that_would_garble_what_is_printed(
    members: Members, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ArchiveTampered, match="cannot be printed") as error:
        verify_archive(written(tmp_path, members | {name: b"x"}))
    assert str(error.value).isprintable()


def test_errors_call_the_archive_as_the_reader_knows_it(members: Members, tmp_path: Path) -> None:
    path = written(tmp_path, members | {"extra.txt": b""})
    with pytest.raises(ArchiveTampered, match=r"^mine-3\.mar: extra\.txt"):
        verify_archive(path, called="mine-3.mar")


@pytest.mark.parametrize("name", ["assets/a.pkl", "model.pt", "x/y.pickle", "v/__pycache__/a.pyc"])
def test_members_that_run_code_when_loaded(members: Members, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveTampered, match="can run code"):
        verify_archive(written(tmp_path, listed(members | {name: b"x"})))


def test_a_torchscript_graph_may_be_a_pt(members: Members, tmp_path: Path) -> None:
    manifest = json.loads(members[MANIFEST])
    graph = manifest["graphs"]["model"] | {"file": "graphs/model.pt", "format": "torchscript"}
    variant = listed(members | {"graphs/model.pt": b"x"}, graphs={"model": graph})
    assert verify_archive(written(tmp_path, variant)).graphs["model"].format == "torchscript"


def test_a_member_twice(members: Members, tmp_path: Path) -> None:
    path = written(tmp_path, members)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(path, "a") as archive,
    ):
        archive.writestr(MANIFEST, members[MANIFEST])
    with pytest.raises(ArchiveTampered, match="twice"):
        verify_archive(path)


def test_a_symbolic_link(members: Members, tmp_path: Path) -> None:
    path = tmp_path / "changed.mar"
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in listed(members | {"link": b"/etc/passwd"}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((stat.S_IFLNK if name == "link" else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, raw)
    with pytest.raises(ArchiveTampered, match="symbolic link"):
        verify_archive(path)


def test_sizes_are_bounded(
    echo_archive: Path, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_layout, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(ArchiveTooLarge, match="more than 1000"):
        verify_archive(echo_archive)
    monkeypatch.setattr(zip_layout, "MAX_UNPACKED_BYTES", 10**9)
    monkeypatch.setattr(zip_layout, "MAX_MEMBERS", len(members) - 1)
    with pytest.raises(ArchiveTooLarge, match="members"):
        verify_archive(echo_archive)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_never_pass(
    echo_archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(echo_archive.read_bytes())
    start = data.draw(st.integers(0, len(raw) - 1))
    size = data.draw(st.integers(1, 64))
    raw[start : start + size] = data.draw(st.binary(min_size=0, max_size=64))
    path = tmp_path_factory.getbasetemp() / "fuzzed.mar"
    path.write_bytes(raw)
    good = verify_archive(echo_archive)
    try:
        manifest = verify_archive(path)
    except ArchiveError:
        return
    assert manifest == good  # a change of what is no content: times, permissions, comments
