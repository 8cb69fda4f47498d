"""Tells what a file is that was given as a checkpoint, by its first bytes and its name.

Nothing of the file is run or built. docs/reference/checkpoints.md is written from `KINDS`.
"""

import string
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

HEAD_BYTES = 4096
MAX_ZIP_NAMES = 100_000
TORCH_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""With which the pickles of torch.save began before they were zip files: its magic number."""
FETCH = "Fetch the file itself"
UNPACK = "Unpack it and give the weights in it"
STATE_DICT = "Save the network's state_dict() with torch.save, or as safetensors"
CONVERT = "Load it where it was made, and save its weights as safetensors under torch's names"


@dataclass(frozen=True)
class Head:
    """What is looked at of a file: its name, its size in bytes, its first `HEAD_BYTES`, and the
    names of its members where it is a zip file (None: it is none, or a broken one)."""

    name: str
    size: int
    raw: bytes
    members: frozenset[str] | None = None

    @property
    def text(self) -> str:
        """The first bytes in lower case, without a byte order mark and leading space; characters
        that are no ASCII are replaced."""
        return self.raw.decode("ascii", errors="replace").lstrip("\ufffd").lstrip().lower()

    def has(self, *names: str) -> bool:
        """Tell whether a zip file has a member of each of these base names, in any folder."""
        return self.members is not None and set(names) <= {
            PurePosixPath(member).name for member in self.members
        }

    def has_suffix(self, *suffixes: str) -> bool:
        """Tell whether a zip file has a member whose name ends so."""
        return any(member.endswith(suffixes) for member in self.members or ())


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is no checkpoint that can be read: what it is, and what to do."""

    what: str
    do: str
    matches: Callable[[Head], bool]


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that was given as a checkpoint, and the name of a file that shows it."""

    what: str
    do: str
    pattern: str


def read_head(path: Path) -> Head:
    """Read the start of a file. Raises OSError."""
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
    members = None
    if raw.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                members = frozenset(archive.namelist()[:MAX_ZIP_NAMES])
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError):
            members = None
    return Head(path.name, path.stat().st_size, raw, members)


def kind_of(head: Head) -> FileKind | None:
    """Return what the file is, or None for one that may be a checkpoint."""
    return next((kind for kind in KINDS if kind.matches(head)), None)


def folder_kind(names: Iterable[str]) -> FolderKind:
    """Return what a folder with files of these names is."""
    present = sorted(names)
    return next(
        (kind for kind in FOLDERS if any(fnmatch(name, kind.pattern) for name in present)),
        FOLDERS[-1],
    )


def is_safetensors(head: Head) -> bool:
    """Return whether it begins like safetensors: the length of a JSON header, then its brace."""
    return head.raw[8:9] == b"{" and not head.raw.startswith(b"PK")


def is_torchscript(head: Head) -> bool:
    """Return whether it is a zip of torch.jit.save: constants, and a folder of code."""
    return head.has("constants.pkl") and any(
        "/code/" in member or member.startswith("code/") for member in head.members or ()
    )


def begins_as_pickle(head: Head) -> bool:
    """Return whether it begins like a pickle of protocol 2 to 5, as torch's older files do too."""
    return head.raw[:1] == b"\x80" and head.raw[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _begins(*starts: bytes) -> Callable[[Head], bool]:
    return lambda head: head.raw.startswith(starts)


def _says(*starts: str) -> Callable[[Head], bool]:
    return lambda head: head.text.startswith(starts)


def _is_text(head: Head) -> bool:
    """Return whether it is ASCII, or UTF-8 without control characters but white space."""
    raw = head.raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) - error.start > 3 or head.size <= HEAD_BYTES:
            return False
        text = raw[: error.start].decode("utf-8")
    return all(char in string.printable or ord(char) > 0x9F for char in text)


def _is_protobuf(head: Head) -> bool:
    """Return whether it begins like ONNX's ModelProto: an ir_version, then another field."""
    raw = head.raw
    return len(raw) > 3 and raw[0] == 0x08 and raw[1] < 64 and raw[2] in b"\x12\x1a\x22\x2a\x3a\x42"


def _is_msgpack(head: Head) -> bool:
    """Return whether it is a map whose first key is a string."""
    raw = head.raw
    if not raw or is_safetensors(head):
        return False
    place = {0xDE: 3, 0xDF: 5}.get(raw[0], 1 if 0x81 <= raw[0] <= 0x8F else 0)
    if not place or len(raw) < place + 2:
        return False
    return 0xA1 <= raw[place] <= 0xBF or (raw[place] == 0xD9 and raw[place + 1] > 0)


def _is_zip(head: Head) -> bool:
    return head.raw.startswith(b"PK") and not (head.has("data.pkl") or head.has("constants.pkl"))


KINDS: tuple[FileKind, ...] = (
    FileKind("an empty file", FETCH, lambda head: head.size == 0),
    FileKind(
        "a git-lfs pointer, not the weights that it points to",
        "Run `git lfs pull` in its repository",
        _says("version https://git-lfs", "version https://hawser"),
    ),
    FileKind(
        "a git-annex or DVC pointer, not the weights that it points to",
        "Run `git annex get` or `dvc pull` in its repository",
        lambda head: (
            head.text.startswith(("/annex/objects", "../.git/annex"))
            or (head.name.endswith(".dvc") and head.text.startswith("outs:"))
        ),
    ),
    FileKind(
        "an unfinished download: its first bytes are all zero",
        f"{FETCH} again",
        lambda head: not any(head.raw),
    ),
    FileKind(
        "a web page (HTML)",
        f"{FETCH}: the address led to a page about it, or to a login",
        lambda head: head.text.startswith(("<!doctype html", "<html", "<head", "<body")),
    ),
    FileKind(
        "an XML document, as storage services answer with an error",
        FETCH,
        _says("<?xml", "<error", "<svg"),
    ),
    FileKind("a macOS resource file", "Give the file without `._`", _begins(b"\0\5\x16\7")),
    FileKind("a gzip file", UNPACK, _begins(b"\x1f\x8b")),
    FileKind("a bzip2 file", UNPACK, _begins(b"BZh")),
    FileKind("an xz file", UNPACK, _begins(b"\xfd7zXZ\0")),
    FileKind("a zstd file", UNPACK, _begins(b"\x28\xb5\x2f\xfd")),
    FileKind("an lz4 file", UNPACK, _begins(b"\x04\x22\x4d\x18")),
    FileKind("a 7z file", UNPACK, _begins(b"7z\xbc\xaf\x27\x1c")),
    FileKind("a RAR file", UNPACK, _begins(b"Rar!")),
    FileKind("a tar file", UNPACK, lambda head: head.raw[257:262] == b"ustar"),
    FileKind("HDF5 (Keras, TensorFlow)", CONVERT, _begins(b"\x89HDF\r\n\x1a\n")),
    FileKind(
        "an array of numpy (.npy)",
        "Save all weights with their names: torch.save({name: tensor, …})",
        _begins(b"\x93NUMPY"),
    ),
    FileKind("a GGUF or GGML file", CONVERT, _begins(b"GGUF", b"lmgg", b"fmgg", b"tjgg")),
    FileKind("a TensorFlow Lite model", CONVERT, lambda head: head.raw[4:8] == b"TFL3"),
    FileKind(
        "an ExecuTorch program",
        STATE_DICT,
        lambda head: head.raw[4:6] == b"ET" and head.raw[6:8].isdigit(),
    ),
    FileKind("a TensorRT engine", CONVERT, _begins(b"ftrt", b"ptrt")),
    FileKind(
        "a part of a TensorFlow checkpoint",
        CONVERT,
        lambda head: ".data-0" in head.name or head.name.endswith((".ckpt.index", ".ckpt.meta")),
    ),
    FileKind(
        "a part of a torch.distributed.checkpoint folder",
        "Join them: torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
        lambda head: head.name.endswith(".distcp") or head.name == ".metadata",
    ),
    FileKind("TorchScript, which holds code", STATE_DICT, is_torchscript),
    FileKind(
        "a program of torch.export (.pt2)",
        STATE_DICT,
        lambda head: (
            head.has("serialized_exported_program.json")
            or head.has("archive_format", "archive_version")
            or head.has("archive_format", "model.json")
        ),
    ),
    FileKind(
        "a torch.package, which holds code", STATE_DICT, lambda head: head.has("extern_modules")
    ),
    FileKind(
        "an archive that `vlserve export` wrote",
        "Register it with `vlserve register`",
        lambda head: head.has("manifest.json", "MANIFEST.json"),
    ),
    FileKind("a TorchServe archive (.mar)", UNPACK, lambda head: head.has("MANIFEST.json")),
    FileKind("a Keras model (.keras)", CONVERT, lambda head: head.has("model.weights.h5")),
    FileKind(
        "a numpy archive (.npz)",
        "Save its arrays as tensors: torch.save({name: tensor, …})",
        lambda head: (
            bool(head.members) and all(member.endswith(".npy") for member in head.members or ())
        ),
    ),
    FileKind(
        "a CoreML package",
        CONVERT,
        lambda head: head.has_suffix(".mlmodel", ".mlpackage/Manifest.json"),
    ),
    FileKind(
        "a zip file with checkpoints in it",
        UNPACK,
        lambda head: (
            _is_zip(head)
            and head.has_suffix(
                ".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".th", ".onnx", ".h5", ".msgpack"
            )
        ),
    ),
    FileKind(
        "a zip file that is cut off or damaged",
        f"{FETCH} again",
        lambda head: head.raw.startswith(b"PK") and head.members is None,
    ),
    FileKind("a zip file without weights of torch", "Give the file of the weights", _is_zip),
    FileKind(
        "a plain pickle (pickle.dump, joblib, Paddle), which only code can read",
        "Load it where it was made, and save its weights with torch.save or as safetensors",
        lambda head: (
            begins_as_pickle(head) and len(head.raw) > 40 and TORCH_LEGACY not in head.raw[:40]
        ),
    ),
    FileKind("Flax's msgpack", CONVERT, _is_msgpack),
    FileKind(
        "an ONNX or TensorFlow graph (protobuf)",
        "Export starts from the trained weights: give the checkpoint that it was made of",
        _is_protobuf,
    ),
    FileKind("JSON text", "Give the file of the weights", _says("{", "[")),
    FileKind("a text file", "Give the file of the weights", _is_text),
)
"""In the order in which they are asked about."""


TEXTS = KINDS[-2:]
"""Kinds that a file which should be JSON may well be."""
FOLDERS = (
    FolderKind(
        "a DeepSpeed checkpoint, of which each process has a part",
        "Join them with its zero_to_fp32.py",
        "zero_to_fp32.*",
    ),
    FolderKind(
        "a DeepSpeed checkpoint, of which each process has a part",
        "Join them with the zero_to_fp32.py of the folder above",
        "*_model_states.pt",
    ),
    FolderKind(
        "a torch.distributed.checkpoint (FSDP), of which each process has a part",
        "Join them: torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
        "*.distcp",
    ),
    FolderKind("a TensorFlow SavedModel", CONVERT, "saved_model.pb"),
    FolderKind("a TensorFlow checkpoint", CONVERT, "*.data-?????-of-?????"),
    FolderKind("an Orbax (Flax, JAX) checkpoint", CONVERT, "_CHECKPOINT_METADATA"),
    FolderKind("an Orbax (Flax, JAX) checkpoint", CONVERT, "manifest.ocdbt"),
    FolderKind("a torch file that was unpacked", "Give the file as it was", "data.pkl"),
    FolderKind("weights in shards", "Give the file that lists them, *.index.json", "*.index.json"),
    FolderKind("a folder with weights", "Give model.safetensors", "model.safetensors"),
    FolderKind("a folder with weights", "Give pytorch_model.bin", "pytorch_model.bin"),
    FolderKind("a folder", "Give the file of the weights", "*"),
)
"""In the order in which they are asked about; the last one is any folder."""
