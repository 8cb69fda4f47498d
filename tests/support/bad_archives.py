"""Archives that must be refused: each a good one with one thing wrong, and what is to be said."""

import io
import json
import random
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from support.archive_members import Members
from support.member_edits import (
    ENGINE_MANIFEST,
    GRAPH,
    HANDLER,
    MANIFEST,
    TASK,
    TOKENIZER,
    TRITON_MODEL,
    BadArchive,
    engine_saying,
    holding,
    listed,
    saying,
    swapped,
    without,
    zipped,
)


def _no_number(where: str) -> Callable[[Members], bytes]:
    """The manifest holds what Python's JSON has and JSON has not."""

    def make(members: Members) -> bytes:
        manifest = json.loads(members[MANIFEST])
        if where == "image":
            manifest["image"]["mean"][0] = float("nan")
        elif where == "options":
            manifest["options"]["scale"] = [float("inf")]
        else:
            manifest["probes"][0]["answer"]["tags"][0]["score"] = float("-inf")
        return listed(members, **manifest)

    return make


def _flipped_bit(members: Members) -> bytes:
    raw = bytearray(zipped(members))
    raw[raw.index(members[GRAPH]) + 5] ^= 1
    return bytes(raw)


def _twice(members: Members) -> bytes:
    file = io.BytesIO(zipped(members))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(HANDLER, members[HANDLER])
    return file.getvalue()


def _link(members: Members) -> bytes:
    file = io.BytesIO(listed(members | {"assets/link": b"/etc/passwd"}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.getinfo("assets/link").external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr("assets/other", b"")  # makes zipfile write the directory anew
    return file.getvalue()


def _encrypted(members: Members) -> bytes:
    raw = bytearray(zipped(members))
    entry = raw.index(b"PK\x01\x02")
    while entry >= 0:
        raw[entry + 8] |= 1
        entry = raw.find(b"PK\x01\x02", entry + 4)
    return bytes(raw)


def _claiming(size_bytes: int) -> Callable[[Members], bytes]:
    """The directory says that each member unpacks to this."""

    def make(members: Members) -> bytes:
        raw = bytearray(zipped(members))
        entry = raw.index(b"PK\x01\x02")
        while entry >= 0:
            raw[entry + 24 : entry + 28] = struct.pack("<I", size_bytes)
            entry = raw.find(b"PK\x01\x02", entry + 4)
        return bytes(raw)

    return make


def _onnx(batch: int | str, operator: str = "Flatten") -> Callable[[Members], bytes]:
    """The echo graph's place taken by an ONNX graph over the image alone."""

    def make(members: Members) -> bytes:
        dims = [batch, 3, 32, 32]
        graph = helper.make_graph(
            [helper.make_node(operator, ["image"], ["logits"])],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, None])],
        )
        opsets = [helper.make_opsetid("", 20)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        graph_entry = json.loads(members[MANIFEST])["graphs"]["model"]
        (image,) = [tensor for tensor in graph_entry["inputs"] if tensor["name"] == "image"]
        graph_entry |= {"file": "graphs/model.onnx", "format": "onnx", "inputs": [image]}
        others = without(members, GRAPH) | {"graphs/model.onnx": model.SerializeToString()}
        return listed(others, graphs={"model": graph_entry})

    return make


def _wrong_answers(members: Members) -> bytes:
    return listed(members | {GRAPH: b'{"answer_shift": 2}'})


UNREADABLE = [
    BadArchive("empty", "archive_unreadable", "not a readable archive", lambda _: b""),
    BadArchive(
        "random-bytes",
        "archive_unreadable",
        "not a readable archive",
        lambda _: random.Random(0).randbytes(50_000),
    ),
    BadArchive(
        "a-tarball",
        "archive_unreadable",
        "not a readable archive",
        lambda _: b"\x1f\x8b\x08" + bytes(500),
    ),
    *(
        BadArchive(
            f"truncated-at-{percent}-percent",
            "archive_unreadable",
            "not a readable archive",
            lambda members, percent=percent: (raw := zipped(members))[: len(raw) * percent // 100],
        )
        for percent in (1, 50, 90, 99)
    ),
    BadArchive("no-members", "archive_unreadable", "has no manifest.json", lambda _: zipped({})),
    BadArchive(
        "no-manifest",
        "archive_unreadable",
        "has no manifest.json",
        lambda members: zipped(without(members, MANIFEST)),
    ),
    BadArchive(
        "only-torchserves-manifest",
        "archive_unreadable",
        "has no manifest.json",
        lambda members: zipped({ENGINE_MANIFEST: members[ENGINE_MANIFEST]}),
    ),
    BadArchive("encrypted", "archive_unreadable", "encrypted", _encrypted),
    BadArchive("a-flipped-bit", "archive_unreadable", "echo.json cannot be read", _flipped_bit),
    BadArchive("claims-160-gb", "archive_too_large", "unpacks to", _claiming(2**32 - 2)),
    BadArchive("claims-too-little", "archive_tampered", "has two sizes", _claiming(1)),
]

CONTRADICTING = [
    BadArchive("manifest-cut", "manifest_invalid", "JSON", swapped(MANIFEST, b'{"model": "')),
    BadArchive("manifest-a-list", "manifest_invalid", "manifest", swapped(MANIFEST, b"[]")),
    BadArchive("manifest-no-text", "manifest_invalid", "JSON", swapped(MANIFEST, b"\xff\xfe\x00")),
    BadArchive("version-zero", "manifest_invalid", "version", saying(version=0)),
    BadArchive("version-negative", "manifest_invalid", "version", saying(version=-2)),
    BadArchive("version-a-word", "manifest_invalid", "version", saying(version="latest")),
    BadArchive("version-too-large", "manifest_invalid", "version", saying(version=2**31)),
    BadArchive("version-not-torchserves", "manifest_invalid", "modelVersion", saying(version=77)),
    BadArchive(
        "torchserves-version-another",
        "manifest_invalid",
        "modelVersion is '77'",
        engine_saying(modelVersion="77"),
    ),
    BadArchive(
        "torchserves-model-another",
        "manifest_invalid",
        "modelName is 'second'",
        engine_saying(modelName="second"),
    ),
    BadArchive(
        "torchserves-handler-another",
        "manifest_invalid",
        "handler is 'image_classifier'",
        engine_saying(handler="image_classifier"),
    ),
    BadArchive(
        "torchserves-manifest-no-json",
        "manifest_invalid",
        "MAR-INF",
        holding(ENGINE_MANIFEST, b"{"),
    ),
    BadArchive(
        "torchserves-manifest-nested",
        "manifest_invalid",
        "MAR-INF",
        holding(ENGINE_MANIFEST, b"[" * 60_000),
    ),
    BadArchive(
        "manifest-nested", "manifest_invalid", "manifest", swapped(MANIFEST, b"[" * 100_000)
    ),
    BadArchive("a-mean-that-is-no-number", "manifest_invalid", "image.mean", _no_number("image")),
    BadArchive("an-infinite-option", "manifest_invalid", "options", _no_number("options")),
    BadArchive("a-probe-that-is-no-number", "manifest_invalid", "probes", _no_number("probes")),
    BadArchive(
        "a-key-that-steers-a-terminal", "manifest_invalid", r"x1b\[2J", saying(**{"\x1b[2J\n": 1})
    ),
    BadArchive("a-second-models-name", "manifest_invalid", "modelName", saying(model="second")),
    BadArchive("a-path-for-a-name", "manifest_invalid", "model", saying(model="../second")),
    BadArchive("a-newer-format", "manifest_invalid", "format", saying(format=2)),
    BadArchive("an-unknown-field", "manifest_invalid", "surprise", saying(surprise=1)),
    BadArchive("no-graph", "manifest_invalid", "no graph", saying(graphs={})),
    BadArchive("labels-repeat", "manifest_invalid", "labels repeat", saying(labels=["a"] * 5)),
    BadArchive("no-probes", "manifest_invalid", "holds no probes", saying(probes=[])),
    BadArchive(
        "no-tokenizer-listed",
        "manifest_invalid",
        f"does not list {TOKENIZER}",
        lambda members: listed(without(members, TOKENIZER)),
    ),
    BadArchive(
        "no-handler-of-its-task",
        "manifest_invalid",
        "does not list handlers/paint.py",
        saying(task="paint"),
    ),
    BadArchive("static-batch", "manifest_invalid", r"axis 0 \(batch\) is static at 1", _onnx(1)),
]

TAMPERED = [
    BadArchive("graph", "archive_tampered", GRAPH, swapped(GRAPH, b'{"answer_shift": 4}')),
    BadArchive("handler", "archive_tampered", TASK, swapped(TASK, b"import os\n")),
    BadArchive("entry-point", "archive_tampered", HANDLER, swapped(HANDLER, b"import os\n")),
    BadArchive(
        "runtime",
        "archive_tampered",
        "runtime/image.py",
        swapped("vlserve/runtime/image.py", b"\n"),
    ),
    BadArchive(
        "tokenizer-missing",
        "archive_tampered",
        f"{TOKENIZER}: missing",
        lambda members: zipped(without(members, TOKENIZER)),
    ),
    BadArchive(
        "graph-missing",
        "archive_tampered",
        f"{GRAPH}: missing",
        lambda members: zipped(without(members, GRAPH)),
    ),
    BadArchive(
        "an-extra-member",
        "archive_tampered",
        "sitecustomize.py: not in the manifest",
        swapped("sitecustomize.py", b"import os\n"),
    ),
    BadArchive("an-absolute-path", "archive_tampered", "leave", holding("/etc/cron.d/x", b"x")),
    BadArchive("a-path-upwards", "archive_tampered", "leave", holding("../../handler.py", b"x")),
    BadArchive("a-windows-path", "archive_tampered", "leave", holding("..\\handler.py", b"x")),
    BadArchive("two-lines-for-a-name", "archive_tampered", "printed", swapped("a\nb\x1b[2J", b"x")),
    BadArchive("a-link", "archive_tampered", "symbolic link", _link),
    BadArchive("a-member-twice", "archive_tampered", "there twice", _twice),
    BadArchive(
        "a-pickle", "archive_tampered", "can run code", holding("assets/vocab.pkl", b"\x80\x04.")
    ),
    BadArchive(
        "a-checkpoint", "archive_tampered", "can run code", holding("graphs/model.pth", b"PK")
    ),
]


def _beginning_with(code: str) -> Callable[[Members], bytes]:
    """The entry points do this at their start; then they would answer nonsense."""
    return _entry_points(
        "import os\n\n"
        "class Handler:\n"
        f"    def initialize(self, context):\n        {code}\n"
        "    def handle(self, data, context):\n        return [b'{}'] * len(data)\n",
        "import os\n\n"
        "class TritonModel:\n"
        f"    def __init__(self, folder, threads, batch_size, answer_log):\n        {code}\n"
        "    def answer(self, data, ids):\n        return [(200, '', b'{}')] * len(data)\n",
    )


def _entry_points(torchserve: str, triton: str) -> Callable[[Members], bytes]:
    files = {HANDLER: torchserve.encode(), TRITON_MODEL: triton.encode()}
    return lambda members: listed(members | files)


FAILING = [
    BadArchive(
        "handler-raises-at-import",
        "load_failed",
        "RuntimeError: no licence",
        _entry_points(*["raise RuntimeError('no licence')\n"] * 2),
    ),
    BadArchive(
        "handler-raises-what-steers-a-terminal",
        "load_failed",
        r"RuntimeError: \\x1b\[2J",
        _entry_points(*["raise RuntimeError('\\x1b[2J\\x1b]0;name\\x07')\n"] * 2),
    ),
    BadArchive(
        "handler-raises-in-initialize",
        "load_failed",
        "ValueError: no GPU ✗",
        _beginning_with("raise ValueError('no GPU ✗')"),
    ),
    BadArchive(
        "handler-crashes-the-worker",
        "load_failed",
        "out of memory; the worker ended with exit code 9|is not healthy",
        _beginning_with("os.write(2, b'out of memory\\n'); os._exit(9)"),
    ),
    BadArchive(
        "task-raises-at-import",
        "load_failed",
        r"handlers/tag\.py cannot be loaded: ImportError\('no such library'\)",
        holding(TASK, b"raise ImportError('no such library')\n"),
    ),
    BadArchive("handler-answers-nonsense", "load_failed", "probe 1", _beginning_with("pass")),
    BadArchive(
        "graph-the-engine-cannot-load",
        "load_failed",
        "graphs/model.echo.json",
        holding(GRAPH, b'{"answer_shift": "much"}'),
    ),
    BadArchive(
        "onnx-with-an-unknown-operator",
        "load_failed",
        "graphs/model.onnx cannot be loaded.*Unheard",
        _onnx("batch", "Unheard"),
    ),
    BadArchive(
        "tokenizer-garbage",
        "load_failed",
        "tokenizer assets/vocabulary.json cannot be read",
        holding(TOKENIZER, b'{"a": "one"}'),
    ),
    BadArchive("probes-answered-wrong", "load_failed", "does not answer as it did", _wrong_answers),
    BadArchive(
        "fails-on-every-item",
        "load_failed",
        "inference_failed",
        holding(GRAPH, b'{"fail_share": 1.0}'),
    ),
]
