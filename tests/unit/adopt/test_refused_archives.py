"""What is not adopted, and in which words; nothing of the archives runs here."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support import legacy_archives as made
from vlserve.adopt.adoption import Wishes, adopt
from vlserve.adopt.checks import Allowed
from vlserve.errors import NotAdopted
from vlserve.runtime.errors import ArchiveTooLarge, ArchiveUnreadable

HANDLER = made.FIRST_ALONE


class Code:
    """Builds by a call, as a pickled module does."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path, ("/nowhere",)


def _refusal(archive: Path, wishes: Wishes | None = None) -> str:
    with pytest.raises(NotAdopted) as error:
        adopt(archive, archive.parent / "out", wishes or Wishes())
    assert not (archive.parent / "out").exists()
    return str(error.value)


def _with_config(folder: Path, text: str) -> Path:
    return made.write_legacy(
        folder / "m.mar", "first.py", HANDLER, {"c.yaml": text}, configFile="c.yaml"
    )


def _cpp(folder: Path) -> Path:
    manifest = '{"runtime": "LSP", "model": {"modelName": "m", "handler": "libscore:Scorer"}}'
    return made.write_members(folder / "m.mar", {"MAR-INF/MANIFEST.json": manifest})


def _workflow(folder: Path) -> Path:
    manifest = '{"workflow": {"workflowName": "dog", "specFile": "spec.yaml"}}'
    return made.write_members(folder / "m.war", {"MAR-INF/MANIFEST.json": manifest})


def _source(source: str) -> Callable[[Path], Path]:
    return lambda folder: made.write_legacy(folder / "m.mar", "h.py", source)


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: made.write_legacy(folder / "m.mar", "first.py", HANDLER, {name: content})


REFUSED = {
    "C++": (_cpp, "is C++ (runtime LSP): only Python handlers are adopted"),
    "workflow": (
        _workflow,
        "is a workflow: adopt its .mar files one by one; chain them in the client",
    ),
    "asynchronous": (
        lambda folder: _with_config(folder, "asyncCommunication: true"),
        "streams tokens with asynchronous workers, which vlserve does not run",
    ),
    "continuous": (
        lambda folder: _with_config(folder, "continuousBatching: true"),
        "streams tokens with asynchronous workers",
    ),
    "async def": (
        _source("class A:\n    async def handle(self, data, context):\n        return data\n"),
        "streams tokens with asynchronous workers",
    ),
    "sequences": (
        lambda folder: _with_config(folder, "sequenceBatching: true"),
        "needs all requests of a sequence at one worker",
    ),
    "sequence id": (
        _source("def handle(data, context):\n    return [context.get_sequence_id(0)]\n"),
        "needs all requests of a sequence at one worker",
    ),
    "pieces": (
        _source(
            "from ts.handler_utils.utils import send_intermediate_predict_response\n"
            "def handle(data, context):\n    return data\n"
        ),
        "answers in pieces (m.mar: h.py): `--whole` joins them into one answer",
    ),
    "no date": (
        lambda folder: _with_config(folder, "since: 2024-13-45"),
        "c.yaml cannot be read: month must be in 1..12",
    ),
    "processes": (
        lambda folder: _with_config(folder, "torchrun:\n  nproc-per-node: 4\n"),
        "starts 4 processes a worker (torchrun)",
    ),
    "pickle": (
        _file("model.bin", pickle.dumps(Code())),
        "model.bin holds code in a pickle: save a state dict, TorchScript or ONNX; or name sha256 ",
    ),
    "joblib": (_file("forest.joblib", b"\x78\x9c"), "forest.joblib holds code in a pickle"),
    "packages": (
        _source("import torchvision_not_here, captum_not_here.attr\ndef handle(d, c): return d\n"),
        "needs captum_not_here, torchvision_not_here, which are not installed: pip install "
        "captum_not_here torchvision_not_here, then again",
    ),
    "TorchServe's own handler": (
        lambda folder: made.write_legacy(folder / "m.mar", "text_classifier"),
        "needs captum, which is not installed: pip install captum, then again",
    ),
    "two classes": (
        _source("class A: pass\nclass B: pass\n"),
        "defines A and B: TorchServe wants one class, or a function handle",
    ),
    "no class": (_source("x = 1\n"), "defines no class: TorchServe wants one class"),
    "no method": (_source("class A: pass\n"), "A has no method handle"),
    "no file": (
        lambda folder: made.write_legacy(folder / "m.mar", "gone.py"),
        "has no handler gone.py: it holds no Python files",
    ),
    "no handler": (
        lambda folder: made.write_members(folder / "m.mar", {"first.py": HANDLER}),
        "does not say its handler: give --handler",
    ),
    "two classes in the model": (
        lambda folder: made.write_legacy(
            folder / "m.mar",
            "h.py",
            "from ts.torch_handler.base_handler import BaseHandler\nclass H(BaseHandler): pass\n",
            {"model.py": "class A: pass\nclass B: pass\n"},
            modelFile="model.py",
        ),
        "model.py defines A and B: TorchServe wants one class",
    ),
    "library": (
        _file("model.so", b"\x7fELF"),
        "model.so is machine code for the machine that made it: --trust-code takes it",
    ),
    "Python 2": (_source("print 'x'\n"), "is not Python 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_words_that_say_what_to_do(case: str, tmp_path: Path) -> None:
    write, words = REFUSED[case]

    message = _refusal(write(tmp_path))

    assert words in message
    assert message.startswith(("m.mar", "m.war"))


def test_an_optional_import_is_no_package_that_is_needed(tmp_path: Path) -> None:
    source = (
        "try:\n    import captum_not_here\nexcept ImportError:\n    captum_not_here = None\n"
        "def handle(data, context):\n    return data\n"
    )

    message = _refusal(
        made.write_legacy(tmp_path / "m.mar", "h.py", source, {"model.so": b"\x7fELF"}),
        Wishes(allowed=Allowed(machine_code=True), envelope="soap"),
    )

    assert "TorchServe has no envelope 'soap'" in message


def test_a_requirement_that_is_not_installed_is_named(tmp_path: Path) -> None:
    archive = made.write_legacy(
        tmp_path / "m.mar",
        "first.py",
        HANDLER,
        {"requirements.txt": "# ours\nnumpy\nnot-to-be-had==1.0\n"},
        requirementsFile="requirements.txt",
    )

    assert "needs not-to-be-had==1.0, which is not installed" in _refusal(archive)


def test_one_of_ours_is_not_adopted(tmp_path: Path) -> None:
    ours = made.write_members(
        tmp_path / "tagger-1.mar", {"manifest.json": "{}", "vlserve/__init__.py": ""}
    )

    assert "is one of vlserve's already" in _refusal(ours)


def test_no_archive_is_no_archive(tmp_path: Path) -> None:
    file = tmp_path / "m.mar"
    file.write_bytes(b"nothing of a zip")

    with pytest.raises(ArchiveUnreadable):
        adopt(file, tmp_path, Wishes())


def test_a_tar_cannot_write_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "m.tgz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("../outside.py")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))

    assert "cannot be unpacked" in _refusal(file)
    assert not (tmp_path / "outside.py").exists()


def test_a_tar_may_unpack_to_as_much_as_a_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.runtime.zip_layout.FREE_UNPACKED_BYTES", 1024)
    file = tmp_path / "m.tgz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("zeros.bin")
        member.size = 1024**2
        archive.addfile(member, io.BytesIO(bytes(member.size)))

    with pytest.raises(ArchiveTooLarge, match="unpacks to 1048576, more than 20 times as many"):
        adopt(file, tmp_path, Wishes())


def test_a_damaged_tar_is_told(tmp_path: Path) -> None:
    file = tmp_path / "m.tgz"
    with tarfile.open(file, "w:gz", compresslevel=0) as archive:
        member = tarfile.TarInfo("words.txt")
        member.size = 300_000
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    content = bytearray(file.read_bytes())
    block = next(at for at in range(100_000, len(content)) if content[at] != ord("x"))
    content[block] = 0b111  # of no type that there is
    file.write_bytes(content)

    assert "cannot be unpacked" in _refusal(file)


def test_what_is_neither_file_nor_folder_is_refused_inside_of_folders_too(tmp_path: Path) -> None:
    folder, requests = tmp_path / "archive", tmp_path / "requests"
    for place in (folder, requests):
        place.mkdir()
        os.mkfifo(place / "pipe")
    assert _refusal(folder) == "archive: pipe is neither a file nor a folder"
    archive = made.write_legacy(tmp_path / "m.mar", "first.py", HANDLER, {})
    assert "pipe is neither a file nor a folder" in _refusal(archive, Wishes(requests=requests))
