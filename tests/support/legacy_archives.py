"""Archives as torch-model-archiver writes them, made by code: what `vlserve adopt` takes over.

Each is one of the ways in which handlers in public repositories are written.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

Files = Mapping[str, str | bytes]

ASSERTS_ITS_BATCH = """
class Service:
    def __init__(self):
        self.loads = 0

    def initialize(self, context):
        self.loads += 1
        self.batch_size = context.system_properties["batch_size"]
        self.name = context.manifest["model"]["modelName"]

    def answer(self, data, context):
        assert len(data) <= self.batch_size, (len(data), self.batch_size)
        rows = [row.get("data") or row.get("body") for row in data]
        return [
            {"model": self.name, "loads": self.loads, "length": len(row), "is": type(row).__name__}
            for row in rows
        ]


_service = Service()


def handle(data, context):
    if not _service.loads:
        _service.initialize(context)
    if data is None:
        return None
    return _service.answer(data, context)
"""

ENTRY_FUNCTION = """
class Unused:
    pass


def prepare(row):
    return row.get("body")


def run(data, context):
    if data is None:
        return
    return [shown(prepare(row)) for row in data]


def shown(value):
    return f"{type(value).__name__}: {value!r}"
"""

BASE_HANDLER = """
from ts.torch_handler.base_handler import BaseHandler
import torch


class Scores(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return torch.tensor([row if isinstance(row, list) else row["values"] for row in rows])

    def postprocess(self, output):
        from ts.utils.util import map_class_to_label
        import torch.nn.functional as functional
        probabilities = functional.softmax(output, dim=1).tolist()
        return map_class_to_label(probabilities, self.mapping)
"""

PARTS = """
import base64
import io

from PIL import Image


class Parts:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        explained = context.get_request_header(0, "explain") == "True"
        return [self.one(row, explained) for row in data]

    def one(self, row, explained):
        sizes = {}
        for name in ("img1", "img2"):
            value = row.get(name)
            if value is None and isinstance(row.get("body"), dict):
                value = row["body"].get(name)
            if isinstance(value, str):
                value = base64.b64decode(value)
            if isinstance(value, (bytes, bytearray)):
                sizes[name] = list(Image.open(io.BytesIO(value)).size)
            elif isinstance(value, list):
                sizes[name] = [len(value), len(value[0])]
        target = row.get("target")
        if explained:
            return {"importances": [sum(size) for size in sizes.values()]}
        return {"sizes": sizes, "target": None if target is None else bytes(target).decode()}
"""

FIRST_ALONE = """
class First:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [{"said": data[0].get("body")}]
"""

INSTANCES = """
class Instances:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [[type(row).__name__, len(row)] for row in data]
"""

DESCRIBES = """
from ts.torch_handler.base_handler import BaseHandler


class Describes(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.initialized = True

    def preprocess(self, data):
        return [row.get("body") for row in data]

    def inference(self, data):
        return data

    def postprocess(self, data):
        return [{"said": str(row)} for row in data]

    def describe_handle(self):
        return {"labels": ["cat", "dog"], "size": 224, "é": [1.5, {"a": True}]}
"""

MISBEHAVES = """
import sys
import time


class Misbehaves:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        metrics = context.metrics
        metrics.add_counter("words_seen", len(data))
        metrics.add_size("bytes_seen", 12, unit="kB")
        metrics.add_percent("share_seen", 50)
        for number in range(10):
            print("seen", number)
        answers = []
        for index, row in enumerate(data):
            word = row.get("body")
            if word == "unknown metric":  # TorchServe fails on it
                metrics.get_metric("nobody_knows_it").add_or_update(1, [])
            elif word == "sleep":
                time.sleep(2)
            elif word == "leave":
                raise SystemExit(3)
            elif word == "raise":
                raise ValueError("no such word")
            elif word == "teapot":
                context.set_response_status(code=418, phrase="a teapot", idx=index)
                context.set_response_header(index, "X-Kind", "teapot")
            elif word == "typed":
                context.set_response_content_type(index, "application/x-words")
            elif word == "our words":
                context.set_response_status(code=422, idx=index)
                answers.append('{"error": {"code": "own", "message": "as a gateway says it"}}')
                continue
            answers.append(f"said {word}")
        return answers
"""

ECHOES = """
import json
import os


class Echoes:
    def initialize(self, context):
        self.context = context
        open("written-at-load", "w").close()
        assert os.path.samefile(os.getcwd(), context.system_properties["model_dir"])

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            headers = {
                name: value
                for name, value in sorted(context.get_all_request_header(index).items(), key=str)
                if name.lower() not in HIDDEN
            }
            answers.append({
                "data": {name: [type(value).__name__, shown(value)] for name, value in row.items()},
                "headers": headers,
                "any_case": context.get_request_header(index, "x-team"),
            })
        return answers


HIDDEN = ("host", "user-agent", "accept", "accept-encoding", "connection", "content-length",
          "x-request-id", "expect", "transfer-encoding")


def shown(value):
    return value.hex() if isinstance(value, (bytes, bytearray)) else value
"""

RESULTS = """
class Results:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [self.one(row["body"]) for row in data]

    def one(self, word):
        if word == "tensor":
            import torch

            return torch.zeros(2)
        if word == "numpy":
            import numpy

            return numpy.float32(1)
        return {
            "str": "é", "bytes": b"\\x00\\xff", "list": [1, 2.5, None], "number": 3, "null": None,
            "nan": float("nan"), "dict": {"b": "é", "a": 1}, "bytearray": bytearray(b"raw"),
            "empty": "",
        }[word]
"""


def write_legacy(
    path: Path, handler: str, source: str = "", files: Files | None = None, **model: str
) -> Path:
    """Write an archive as torch-model-archiver lays it out, and return its path.

    Args:
        handler: as the archiver's manifest has it.
        source: code of the handler's file.
        files: others, by their names.
        model: entries of the manifest's model beside handler, name and version.
    """
    about = {"modelName": "Words", "modelVersion": "1.0", "handler": handler, **model}
    manifest = {"createdOn": "01/01/2024 00:00:00", "runtime": "python", "model": about}
    members: dict[str, str | bytes] = {
        "MAR-INF/MANIFEST.json": json.dumps({**manifest, "archiverVersion": "0.12.0"}),
        **(files or {}),
    }
    if source:
        members[f"{handler.partition(':')[0].removesuffix('.py')}.py"] = source
    return write_members(path, members)


def write_members(path: Path, members: Files) -> Path:
    """Write a deflated zip, as the archiver does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def torchscript(inputs: int = 3, outputs: int = 2) -> bytes:
    """Return the bytes of a small traced network."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = torch.nn.Linear(inputs, outputs).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = torch.jit.trace(network, torch.zeros(1, inputs))  # type: ignore[no-untyped-call]
        torch.jit.save(graph, buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def picture(width: int = 6, height: int = 4) -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 80, 200)).save(buffer, "PNG")
    return buffer.getvalue()
