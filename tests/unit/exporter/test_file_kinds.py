"""What people give as a checkpoint is named for what it is, and nothing of it runs."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save
from torch import nn

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.file_kinds import FOLDERS, KINDS

WEIGHTS = {"layer.weight": torch.arange(300.0)}


def torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("model.pth")
        archive.addfile(member, io.BytesIO())
    return stream.getvalue()


def saved(save_to: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    save_to(stream)
    return stream.getvalue()


def traced() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
        return saved(lambda stream: torch.jit.save(module, stream))  # type: ignore[no-untyped-call]


def exported() -> bytes:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    return saved(lambda stream: torch.export.save(program, stream))


def graph() -> bytes:
    axes = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])]
    node = onnx.helper.make_node("Identity", ["x"], ["x"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", axes, axes))
    return model.SerializeToString()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 438007537\n"
FILES: list[tuple[str, str, Callable[[], bytes]]] = [
    ("an empty file", "model.pth", lambda: b""),
    ("a git-lfs pointer", "model.safetensors", lambda: POINTER),
    ("a git-annex or DVC pointer", "model.pth", lambda: b"/annex/objects/SHA256E-s1--ab.pth\n"),
    ("a git-annex or DVC pointer", "model.pth.dvc", lambda: b"outs:\n- md5: 12\n  path: m.pth\n"),
    ("an unfinished download", "model.pth", lambda: bytes(9000)),
    ("a web page", "model.pth", lambda: b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><body>Sign in"),
    ("an XML document", "model.pth", lambda: b"<?xml version='1.0'?><Error>AccessDenied</Error>"),
    ("a macOS resource file", "._model.pth", lambda: b"\0\5\x16\7\0\2\0\0Mac OS X        "),
    ("a gzip file", "model.pth.gz", lambda: gzip.compress(torch_bytes(WEIGHTS))),
    ("a gzip file", "model.tar.gz", lambda: gzip.compress(tarred())),
    ("a bzip2 file", "model.pth", lambda: bz2.compress(b"x" * 99)),
    ("an xz file", "model.pth", lambda: lzma.compress(b"x" * 99)),
    ("a zstd file", "model.pth", lambda: b"\x28\xb5\x2f\xfd" + bytes(range(60))),
    ("an lz4 file", "model.pth", lambda: b"\x04\x22\x4d\x18" + bytes(range(60))),
    ("a 7z file", "model.pth", lambda: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(range(60))),
    ("a RAR file", "model.pth", lambda: b"Rar!\x1a\7\1\0" + bytes(range(60))),
    ("a tar file", "model.nemo", tarred),
    ("HDF5", "model.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(range(90))),
    ("an array of numpy", "w.npy", lambda: saved(lambda file: np.save(file, np.ones(3)))),
    ("a GGUF or GGML file", "model.gguf", lambda: b"GGUF\3\0\0\0" + bytes(range(60))),
    ("a TensorFlow Lite model", "model.tflite", lambda: b"\x1c\0\0\0TFL3" + bytes(range(60))),
    ("an ExecuTorch program", "model.pte", lambda: b"\x1c\0\0\0ET12" + bytes(range(60))),
    ("a TensorRT engine", "model.engine", lambda: b"ftrt" + bytes(range(60))),
    (
        "a part of a TensorFlow checkpoint",
        "model.ckpt.data-00000-of-00001",
        lambda: bytes(range(255)),
    ),
    ("a part of a torch.distributed.checkpoint", "__0_0.distcp", lambda: torch_bytes(WEIGHTS)),
    ("TorchScript", "model.pt", traced),
    ("a program of torch.export", "model.pt2", exported),
    (
        "a program of torch.export",
        "model.pt2",
        lambda: zipped({"serialized_exported_program.json": b"{}", "version": b"5.1"}),
    ),
    ("a torch.package", "model.pt", lambda: zipped({"m/.data/extern_modules": b"torch"})),
    (
        "an archive that `vlserve export` wrote",
        "m-1.mar",
        lambda: zipped({"manifest.json": b"{}", "MAR-INF/MANIFEST.json": b"{}"}),
    ),
    (
        "a TorchServe archive",
        "m.mar",
        lambda: zipped({"MAR-INF/MANIFEST.json": b"{}", "model.pth": torch_bytes(WEIGHTS)}),
    ),
    (
        "a Keras model",
        "model.keras",
        lambda: zipped({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b"h"}),
    ),
    ("a numpy archive", "w.npz", lambda: saved(lambda file: np.savez(file, a=np.ones(3)))),
    (
        "a CoreML package",
        "m.mlpackage.zip",
        lambda: zipped({"m.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"x"}),
    ),
    (
        "a zip file with checkpoints in it",
        "weights.zip",
        lambda: zipped({"best/model.pth": torch_bytes(WEIGHTS)}),
    ),
    ("a zip file that is cut off", "model.pth", lambda: torch_bytes(WEIGHTS)[:700]),
    ("a zip file without weights", "code.zip", lambda: zipped({"train.py": b"import torch"})),
    ("a plain pickle", "model.pkl", lambda: pickle.dumps({"w": np.ones(40)})),
    ("a plain pickle", "model.pdparams", lambda: pickle.dumps({"w": np.ones(40)}, protocol=2)),
    (
        "Flax's msgpack",
        "flax_model.msgpack",
        lambda: bytes(msgpack.packb({"params": {"kernel": b"\0" * 99}})),
    ),
    ("an ONNX or TensorFlow graph", "model.onnx", graph),
    ("JSON text", "config.json", lambda: b'{"model_type": "blip"}'),
    ("a text file", "README.md", "# Gewichte f\u00fcr 标签\n".encode),
]


@pytest.mark.parametrize(
    ("what", "name", "content"), FILES, ids=[f"{what}-{name}" for what, name, _ in FILES]
)
def test_a_file_that_is_no_checkpoint_is_named(
    what: str, name: str, content: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(CheckpointMismatch) as refusal:
        read_checkpoint(tmp_path / name)
    assert f"{name} is {what}" in str(refusal.value)


def test_every_kind_of_the_table_is_tried() -> None:
    unknown = [kind.what for kind in KINDS if not any(kind.what.startswith(f[0]) for f in FILES)]
    assert unknown == []


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["zero_to_fp32.py", "latest", "global_step9"], "a DeepSpeed checkpoint"),
        (["mp_rank_00_model_states.pt"], "a DeepSpeed checkpoint"),
        ([".metadata", "__0_0.distcp"], "a torch.distributed.checkpoint (FSDP)"),
        (["saved_model.pb", "variables"], "a TensorFlow SavedModel"),
        (["checkpoint", "m.ckpt.data-00000-of-00001", "m.ckpt.index"], "a TensorFlow checkpoint"),
        (["_CHECKPOINT_METADATA", "params"], "an Orbax"),
        (["manifest.ocdbt", "d"], "an Orbax"),
        (["data.pkl", "version"], "a torch file that was unpacked"),
        (["model.safetensors.index.json", "config.json"], "weights in shards"),
        (["model.safetensors", "config.json"], "a folder with weights. Give model.safetensors"),
        (["pytorch_model.bin"], "a folder with weights. Give pytorch_model.bin"),
        ([], "a folder. Give the file"),
    ],
)  # fmt: skip
def test_a_folder_is_named(files: list[str], what: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointMismatch) as refusal:
        read_checkpoint(tmp_path)
    assert f"{tmp_path} is {what}" in str(refusal.value)
    assert any(str(refusal.value).endswith(f"{kind.what}. {kind.do}") for kind in FOLDERS)


@pytest.mark.parametrize(
    "raw",
    [
        torch_bytes(WEIGHTS),
        torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
        save(WEIGHTS),
        save(WEIGHTS, {"format": "pt"}),
    ],
    ids=["zip", "legacy", "safetensors", "metadata"],
)
def test_checkpoints_are_taken_for_nothing_else(raw: bytes, tmp_path: Path) -> None:
    for name in ("pytorch_ckpt_latest.tar", "visual_bert.th", "m.ckpt", "model"):
        (tmp_path / name).write_bytes(raw)
        assert torch.equal(
            read_checkpoint(tmp_path / name)["layer.weight"], WEIGHTS["layer.weight"]
        )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_another_pickle_protocol_is_named(zipped: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": 4}
    (tmp_path / "model.pth").write_bytes(torch_bytes(WEIGHTS, **options))
    with pytest.raises(CheckpointMismatch, match="was saved with another pickle protocol"):
        read_checkpoint(tmp_path / "model.pth")


def test_a_path_that_is_no_regular_file_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="/dev/null is no regular file"):
        read_checkpoint(Path("/dev/null"))


def shards(folder: Path, suffix: str = "safetensors") -> Path:
    """Two shards and their index, as transformers writes them."""
    parts = {f"model-0000{part}-of-00002.{suffix}": f"layer.{part}.weight" for part in (1, 2)}
    for file, name in parts.items():
        tensors = {name: torch.full((2,), float(name[6]))}
        raw = save(tensors) if suffix == "safetensors" else torch_bytes(tensors)
        (folder / file).write_bytes(raw)
    index = folder / f"model.{suffix}.index.json"
    weight_map = {name: file for file, name in parts.items()}
    index.write_text(
        json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}), encoding="utf-8"
    )
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(suffix: str, tmp_path: Path) -> None:
    state = read_checkpoint(shards(tmp_path, suffix))
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        "layer.1.weight": [1.0, 1.0],
        "layer.2.weight": [2.0, 2.0],
    }


def test_one_shard_alone_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"is one of 2 shards\. Give the \*\.index\.json"):
        read_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    only = tmp_path / "model-00001-of-00001.safetensors"
    only.write_bytes(save(WEIGHTS))
    assert list(read_checkpoint(only)) == ["layer.weight"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"weight_map": {}}', "has no weight_map"),
        ("[]", "is not JSON"),
        ("{", "is not JSON"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "which is no file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is no file beside it"),
        ('{"weight_map": {"a": 3}}', "names 3, which is no file"),
        (
            '{"weight_map": {"a": "gone.safetensors"}}',
            "names gone.safetensors, which is not beside",
        ),
        (
            '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
            "model-00001-of-00002.safetensors lacks a, which",
        ),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(
    content: str, reason: str, tmp_path: Path
) -> None:
    index = shards(tmp_path)
    index.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointMismatch, match=reason):
        read_checkpoint(index)


def test_a_shard_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    with pytest.raises(CheckpointMismatch, match=r"00002\.safetensors is a git-lfs pointer"):
        read_checkpoint(index)
