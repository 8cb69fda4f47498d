"""Handlers of adopted archives, started and asked in this process: batches, errors, answers."""

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from support import legacy_archives as legacy
from support.legacy_exchanges import END, FORM, part
from support.started_handlers import SHA256, Start, ask
from vlserve.runtime.types import ItemError, Request


def test_a_function_is_called_once_without_data_and_never_beyond_its_batch(start: Start) -> None:
    pipeline = start(legacy.ASSERTS_ITS_BATCH, batch_size=4)

    answers = [json.loads(body) for _, body in ask(pipeline, b"a", b"bb", b"ccc", b"dddd")]

    assert [answer["length"] for answer in answers] == [1, 2, 3, 4]
    assert {answer["loads"] for answer in answers} == {1}
    assert {answer["model"] for answer in answers} == {"Words"}


def test_a_function_is_found_by_its_name_beside_other_functions_and_a_class(start: Start) -> None:
    pipeline = start(legacy.ENTRY_FUNCTION, handler="own:run")

    assert ask(pipeline, b"x") == [(200, b"str: 'x'")]


def test_a_handler_that_answers_the_first_alone_is_asked_one_by_one(start: Start) -> None:
    pipeline = start(legacy.FIRST_ALONE, batch_size=4)

    answers = ask(pipeline, b"a", b"b", b"c", b"d")

    assert [json.loads(body)["said"] for _, body in answers] == ["a", "b", "c", "d"]


def test_a_request_that_fails_harms_none_of_its_batch(start: Start) -> None:
    pipeline = start(legacy.MISBEHAVES, batch_size=4)

    answers = ask(pipeline, b"a", b"raise", b"teapot", b"d")

    assert [status for status, _ in answers] == [200, 503, 418, 200]
    failure = json.loads(answers[1][1])
    assert failure["code"] == 503
    assert failure["type"] == "InternalServerException"
    assert failure["message"] == "Prediction failed"
    assert failure["error"] == {"code": "prediction_failed", "message": "Prediction failed"}


def test_a_metric_that_nobody_listed_fails_no_request(start: Start) -> None:
    assert ask(start(legacy.MISBEHAVES), b"unknown metric") == [(200, b"said unknown metric")]


def test_a_handler_that_must_not_see_a_request_twice_fails_as_a_whole(start: Start) -> None:
    pipeline = start(legacy.MISBEHAVES, batch_size=4, isolates=False)

    assert [status for status, _ in ask(pipeline, b"a", b"raise")] == [503, 503]


def test_a_word_that_ends_the_worker_does_end_it(start: Start) -> None:
    with pytest.raises(SystemExit):
        ask(start(legacy.MISBEHAVES), b"leave")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise MemoryError", 507, "Out of resources"),
        ("raise RuntimeError('CUDA error: out of memory')", 507, "Out of resources"),
        ("raise PredictionException('too long', 422)", 422, "too long"),
        ("raise PredictionException('too long')", 500, "too long"),
        ("raise PredictionException('no status', 42)", 503, "Prediction failed"),
        ("raise PredictionException('no status', 'many')", 503, "Prediction failed"),
        ("return {'a': 1}", 503, "Invalid model predict output"),
        ("return None", 503, "Invalid model predict output"),
        ("return (1,)", 503, "Invalid model predict output"),
        ("return []", 503, "number of batch response mismatched"),
        ("import numpy; return [numpy.float32(1)]", 503, "Unsupported model output data type."),
        ("context.set_response_header(0, 'x', 1); return [1]", 503, "Prediction failed"),
    ],
)
def test_errors_have_torchserves_status_and_words(
    start: Start, body: str, status: int, message: str
) -> None:
    source = (
        "from ts.utils.util import PredictionException\n"
        f"class Own:\n    def initialize(self, context): pass\n"
        f"    def handle(self, data, context):\n        {body}\n"
    )

    ((reply_status, content),) = ask(start(source), b"x")

    assert reply_status == status
    assert json.loads(content)["message"] == message


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ("'é'", "é".encode()),
        ("b'\\x00\\xff'", b"\x00\xff"),
        ("bytearray(b'raw')", b"raw"),
        ("{'é': [1, None]}", b'{\n  "\\u00e9": [\n    1,\n    null\n  ]\n}'),
        ("float('nan')", b"NaN"),
        ("None", b"null"),
        ("''", b""),
    ],
)
def test_results_are_sent_as_torchserve_sends_them(
    start: Start, result: str, content: bytes
) -> None:
    source = f"def handle(data, context):\n    return data and [{result}]\n"

    assert ask(start(source), b"x") == [(200, content)]


def test_two_classes_are_refused_by_their_names(start: Start) -> None:
    with pytest.raises(ValueError, match="own defines A and B: TorchServe wants one class"):
        start("class A: pass\nclass B: pass\n")


def test_a_neighbour_is_imported_and_the_folder_is_a_copy_to_write_in(
    start: Start, tmp_path: Path
) -> None:
    start(legacy.ECHOES)

    assert Path("written-at-load").exists()
    assert not (tmp_path / "archive" / "legacy" / "written-at-load").exists()


def test_copies_of_dead_workers_go_and_no_others(start: Start, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    dead_copy = tmp_path / f"legacy-words-1.{dead.pid}.x"
    other_copy = tmp_path / f"legacy-words-1-2.{dead.pid}.x"
    living_copy = tmp_path / f"legacy-words-1.{os.getppid()}.x"
    copies = (dead_copy, other_copy, living_copy)
    for folder in copies:
        folder.mkdir()

    start(legacy.ECHOES)

    assert [folder.exists() for folder in copies] == [False, True, True]


def test_a_pickled_module_is_refused_even_where_the_code_asks_for_it(start: Start) -> None:
    source = (
        "import torch\n"
        "class Own:\n"
        "    def initialize(self, context):\n"
        "        torch.save(torch.nn.Linear(1, 1), 'whole.pth')\n"
        "        torch.save({'weight': torch.zeros(1)}, 'state.pth')\n"
        "        torch.load('state.pth', weights_only=False)\n"
        "        torch.load('whole.pth', weights_only=False)\n"
        "    def handle(self, data, context): return data\n"
    )

    with pytest.raises(Exception, match="Weights only load failed"):
        start(source)


def test_an_archive_that_the_operator_trusts_reads_its_pickles(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLSERVE_TRUST", json.dumps({"pickle": [SHA256]}))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    source = (
        "import torch\n"
        "class Own:\n"
        "    def initialize(self, context):\n"
        "        torch.save(torch.nn.Linear(1, 1), 'whole.pth')\n"
        "        self.model = torch.load('whole.pth', weights_only=False)\n"
        "    def handle(self, data, context): return [type(self.model).__name__]\n"
    )

    assert ask(start(source), b"x") == [(200, b"Linear")]


@pytest.mark.parametrize("envelope", ["json", "kserve"])
def test_envelopes_are_torchserves(start: Start, envelope: str) -> None:
    pipeline = start(legacy.INSTANCES, envelope=envelope)

    ((status, content),) = ask(pipeline, b'{"instances": [[1, 2], [3]]}', kind="application/json")

    assert status == 200
    assert json.loads(content) == {"predictions": [["list", 2], ["list", 1]]}


def test_the_lengths_of_a_batch_are_kept_by_the_json_envelope(start: Start) -> None:
    pipeline = start(legacy.INSTANCES, batch_size=2, envelope="json")

    answers = ask(
        pipeline, b'{"instances": [[1]]}', b'{"instances": [[], [2]]}', kind="application/json"
    )

    assert [json.loads(body)["predictions"] for _, body in answers] == [
        [["list", 1]],
        [["list", 0], ["list", 1]],
    ]


def test_pieces_are_joined_where_that_was_asked_for(start: Start) -> None:
    source = (
        "from ts.handler_utils.utils import send_intermediate_predict_response as send\n"
        "class Own:\n"
        "    def initialize(self, context): pass\n"
        "    def handle(self, data, context):\n"
        "        for piece in ('one ', 'two '):\n"
        "            send([piece] * len(data), context.request_ids, 'ok', 200, context)\n"
        "        return ['three'] * len(data)\n"
    )

    pipeline = start(source, batch_size=2, joins_pieces=True)

    assert ask(pipeline, b"a", b"b") == [(200, b"one two three")] * 2


MODEL_FILE = b"""
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)
"""


def test_a_state_dict_is_read_through_base_handler_and_its_model_file(start: Start) -> None:
    namespace: dict[str, Any] = {}
    exec(MODEL_FILE, namespace)
    network = namespace["Net"]()
    state = io.BytesIO()
    torch.save(network.state_dict(), state)
    with torch.no_grad():
        expected = torch.softmax(network(torch.tensor([[1.0, 2.0, 3.0]])), dim=1)[0].tolist()

    pipeline = start(
        legacy.BASE_HANDLER,
        files={"net.py": MODEL_FILE, "net.pth": state.getvalue()},
        model={"modelFile": "net.py", "serializedFile": "net.pth"},
    )

    ((status, content),) = ask(pipeline, b"[1.0, 2.0, 3.0]", kind="application/json")
    assert status == 200
    assert list(json.loads(content).values()) == pytest.approx(expected)


ONNX_HANDLER = """
import onnxruntime
from ts.torch_handler.base_handler import BaseHandler


class Graph(BaseHandler):
    def preprocess(self, data):
        import numpy
        return numpy.array([row["body"] for row in data], dtype=numpy.float32)

    def inference(self, data):
        return self.model.run(None, {"x": data})[0].tolist()

    def postprocess(self, data):
        threads = self.model.get_session_options().intra_op_num_threads
        return [{"sum": row, "threads": threads} for row in data]
"""


def test_an_onnx_graph_computes_on_the_versions_own_threads(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(onnxruntime, "InferenceSession", onnxruntime.InferenceSession)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([node], "double", [x], [y])
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)

    pipeline = start(
        ONNX_HANDLER,
        files={"double.onnx": model.SerializeToString()},
        model={"serializedFile": "double.onnx"},
    )

    ((_, content),) = ask(pipeline, b"[1.0, 2.0, 3.0]", kind="application/json")
    assert json.loads(content) == {"sum": [2.0, 4.0, 6.0], "threads": 3}


def test_each_form_of_an_image_is_the_same_to_a_handler(start: Start) -> None:
    pipeline = start(legacy.PARTS)
    png = legacy.picture()
    in_json = json.dumps({"img1": base64.b64encode(png).decode(), "img2": [[0.5] * 6] * 4})
    form = part("img1", png, "image/png", "a.png") + part("img2", png) + part("target", b"3") + END

    by_form = ask(pipeline, form, kind=FORM)
    by_json = ask(pipeline, in_json.encode(), kind="application/json")

    assert json.loads(by_form[0][1]) == {"sizes": {"img1": [6, 4], "img2": [6, 4]}, "target": "3"}
    assert json.loads(by_json[0][1])["sizes"] == {"img1": [6, 4], "img2": [4, 6]}


def test_explanations_are_asked_for_by_the_path(start: Start) -> None:
    pipeline = start(legacy.PARTS)
    form = part("img1", legacy.picture(), "image/png", "a.png") + END
    request = {"path": "/explanations/m", "headers": {"content-type": FORM}, "content": form}

    (answer,) = pipeline.run([Request(request, "")]).answers

    assert not isinstance(answer, ItemError)
    assert json.loads(answer["text"]) == {"importances": [10]}
