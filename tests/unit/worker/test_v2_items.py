"""One V2 request to plain ones, and their answers to one."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlserve_worker import request_filter
from vlserve_worker.bodies import BodyRefused
from vlserve_worker.capture import PLAN, Capture, Plan, fields_of, name_of
from vlserve_worker.request_filter import Noted, Refusal, RequestFilter
from vlserve_worker.several_items import ItemAnswer
from vlserve_worker.v2.batch import served_by, spread_batch
from vlserve_worker.v2.exchange import Served
from vlserve_worker.v2.item_ids import ItemId, item_id, read_item_id
from vlserve_worker.v2.items import split_items
from vlserve_worker.v2.messages import (
    BYTES,
    MAX_ITEMS,
    MAX_PARAMETER_BYTES,
    InferRequest,
    Tensor,
)
from vlserve_worker.v2.outputs import OUTPUTS, join_answers

TAGGER = Served("tagger", 7, "tag")
JPEG = b"\xff\xd8\xff" + bytes(range(256))


def texts(*values: bytes, name: str = "text") -> Tensor:
    return Tensor(name, BYTES, (len(values),), values)


def numbers(name: str, datatype: str, shape: tuple[int, ...], *values: float) -> Tensor:
    return Tensor(name, datatype, shape, np.array(values))


def test_an_item_has_its_row_of_each_input_and_the_parameters() -> None:
    request = InferRequest(
        (
            texts(b"a", b"b"),
            Tensor("image", BYTES, (2, 1), [b"\xff", b"\xfe"]),
            numbers("seed", "INT64", (2,), 4, 5),
            Tensor("sample", "BOOL", (2, 1), np.array([True, False])),
        ),
        parameters={
            "top_k": 3,
            "top_p": 0.25,
            "overlay": True,
            "candidates": '["x"]',
            "timeout": 9,
        },
    )
    parameters = {"top_k": b"3", "top_p": b"0.25", "overlay": b"true", "candidates": b'["x"]'}
    assert split_items(request) == [
        parameters | {"text": b"a", "image": b"\xff", "seed": b"4", "sample": b"true"},
        parameters | {"text": b"b", "image": b"\xfe", "seed": b"5", "sample": b"false"},
    ]


def test_several_numbers_of_an_item_are_a_npy_file() -> None:
    values = np.arange(12, dtype="<f4").reshape(2, 2, 3)
    request = InferRequest((Tensor("features", "FP32", values.shape, values.ravel()),))
    for fields, row in zip(split_items(request), values, strict=True):
        array = np.load(io.BytesIO(fields["features"]), allow_pickle=False)
        assert array.dtype == row.dtype
        assert (array == row).all()


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (base64.b64encode(JPEG), JPEG),
        (base64.urlsafe_b64encode(JPEG), JPEG),
        (b" " + base64.encodebytes(JPEG), JPEG),
        (b"data:image/jpeg;base64," + base64.b64encode(JPEG), JPEG),
        (JPEG, JPEG),
        (b"neither a file nor base64", b"neither a file nor base64"),
        (b"QUJDREVGR0hJSktMTU5PUA=!", b"QUJDREVGR0hJSktMTU5PUA=!"),
    ],
)
def test_a_file_in_base64_is_its_bytes_for_archives_that_read_no_other(
    content: bytes, value: bytes
) -> None:
    request = InferRequest((texts(content, name="image"), texts(content)))
    assert split_items(request) == [{"image": value, "text": content}]


BAD_ITEMS = {
    "no inputs": (InferRequest(()), "no inputs"),
    "no items": (InferRequest((texts(),)), "number of items"),
    "no axis": (InferRequest((numbers("a", "INT8", (), 1),)), "number of items"),
    "not as many": (InferRequest((texts(b"a"), texts(b"a", b"b", name="x"))), "'x' 2"),
    "an input twice": (InferRequest((texts(b"a"), texts(b"a"))), "twice"),
    "a parameter like an input": (InferRequest((texts(b"a"),), parameters={"text": "b"}), "twice"),
    "an input called body": (InferRequest((texts(b"a", name="body"),)), "'body'"),
    "a parameter called body": (InferRequest((texts(b"a"),), parameters={"body": "b"}), "'body'"),
    "two elements an item": (InferRequest((Tensor("t", BYTES, (1, 2), [b"", b""]),)), "BYTES"),
    "too much for each item": (
        InferRequest((texts(b"a"),), parameters={"a": "x" * MAX_PARAMETER_BYTES, "b": "x"}),
        "bytes of parameters",
    ),
    "no number": (InferRequest((numbers("a", "FP32", (1,), float("nan")),)), "finite"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_what_is_no_list_of_items_is_refused_in_words(case: str) -> None:
    request, says = BAD_ITEMS[case]
    with pytest.raises(BodyRefused, match=says):
        split_items(request)


def test_items_are_limited_by_an_error_of_their_own() -> None:
    assert len(split_items(InferRequest((texts(*[b""] * MAX_ITEMS),)))) == MAX_ITEMS
    with pytest.raises(BodyRefused, match=str(MAX_ITEMS)) as error:
        split_items(InferRequest((texts(*[b""] * (MAX_ITEMS + 1)),)))
    assert error.value.code == "too_many_items"


def test_ids_of_items_tell_request_index_and_number() -> None:
    assert item_id("r", 0, 1) == "r"
    assert read_item_id("r") is None
    assert read_item_id(item_id("r", 2, 5)) == ItemId("r", 2, 5)


def of(task: str, *answers: dict[str, Any] | None) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in join_answers(task, answers)}


def tags(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"model": "m", "tags": [{"tag": tag, "score": score} for tag, score in pairs]}


def test_tags_are_joined_and_short_answers_filled_up() -> None:
    outputs = of("tag", tags(("a", 0.5), ("b", 0.25)), None, tags(("c", 1.0)))
    assert outputs["tag"].shape == outputs["score"].shape == (3, 2)
    assert outputs["tag"].data == [b"a", b"b", b"", b"", b"c", b""]
    assert list(outputs["score"].data) == [0.5, 0.25, 0, 0, 1, 0]


def test_regions_and_maps_are_told_apart() -> None:
    regions = of("ground", {"regions": [{"box": [0, 0, 1, 1], "score": 0.5}]}, {"regions": []})
    assert {name: output.shape for name, output in regions.items()} == {
        "box": (2, 1, 4),
        "score": (2, 1),
    }
    heat = {"probability": 0.5, "peak": None, "grid": [[0.0, 1.0]], "heat_map": "UE5H"}
    maps = of("ground", heat)
    assert list(maps) == ["probability", "peak", "grid", "heat_map"]
    assert list(maps["peak"].data) == [-1, -1]
    assert maps["grid"].shape == (1, 1, 2)


def test_what_a_model_has_not_is_no_output() -> None:
    assert list(of("match", {"probability": 0.5, "itm_score": 1.0})) == ["probability", "itm_score"]
    answer = {"ranked_by": "match_logit", "results": [{"id": "a", "score": 2.0}]}
    assert list(of("retrieve", answer)) == ["id", "score", "ranked_by"]


def test_a_task_of_the_user_s_own_has_its_answer_as_json() -> None:
    (mood,) = of("mood", {"model": "m", "version": 1, "request_id": "r", "label": "glad"}).values()
    assert (mood.name, mood.shape, mood.data) == ("answer", (1,), [b'{"label": "glad"}'])


def test_without_any_answer_every_output_is_there_and_empty() -> None:
    for task in OUTPUTS:
        assert {tensor.shape[0] for tensor in join_answers(task, [None, None])} == {2}


def raw(body: Any, protocol: str = "v2", **headers: str) -> dict[str, Any]:
    fields = {"x-vlserve-protocol": protocol, "x-request-id": "r"} | headers
    return {
        "requestId": b"own",
        "headers": [{"name": n.encode(), "value": v.encode()} for n, v in fields.items()],
        "parameters": [{"name": "body", "value": bytearray(json.dumps(body).encode())}],
    }


def request_of(*values: str, **more: Any) -> dict[str, Any]:
    about = {"name": "text", "datatype": "BYTES", "shape": [len(values)], "data": list(values)}
    return {"inputs": [about], **more}


def ids_of(items: list[Any]) -> list[str]:
    return [
        header["value"].decode()
        for item in items
        for header in item["headers"]
        if header["name"] == b"x-request-id"
    ]


def test_a_batch_keeps_its_plain_requests_and_spreads_the_others() -> None:
    plain = raw({"text": "a"}, protocol="")
    batch = [plain, raw(request_of("b", "c")), raw([]), raw(request_of("d"))]
    spread = spread_batch(batch, TAGGER, 1000)
    assert spread.places == [0, 1, 1, 2, 3]
    assert spread.items[0] is plain
    assert isinstance(spread.items[3], Refusal)
    assert ids_of([*spread.items[1:3], spread.items[4]]) == ["r~0~2", "r~1~2", "r"]
    assert [len(group) for group in spread.grouped(range(5))] == [1, 2, 1, 1]


def answered(*answers: ItemAnswer, **more: Any) -> tuple[int, str, dict[str, Any]]:
    (exchange,) = spread_batch(
        [raw(request_of(*"abc"[: len(answers)], **more))], TAGGER, 1000
    ).exchanges
    assert exchange
    whole = exchange.join(answers)
    return whole.status, whole.timing, json.loads(whole.encoded.body)


def said(*pairs: tuple[str, float], timing: str = "") -> ItemAnswer:
    return ItemAnswer(200, timing, json.dumps(tags(*pairs)).encode())


def wrong(status: int, code: str) -> ItemAnswer:
    error = {"error": {"code": code, "message": "why"}, "request_id": "r"}
    return ItemAnswer(status, "", json.dumps(error).encode())


def test_answers_are_joined_in_the_words_of_v2() -> None:
    first, later = "decode;dur=1.000, infer;dur=2.000", "decode;dur=0.500, infer;dur=1.000"
    items = [
        said(("a", 0.5), timing=first),
        said(("b", 1), timing=first),
        said(("c", 0), timing=later),
    ]
    assert answered(*items, id="mine", outputs=[{"name": "tag"}]) == (
        200,
        "decode;dur=1.500, infer;dur=3.000",
        {
            "model_name": "tagger",
            "model_version": "7",
            "id": "mine",
            "outputs": [
                {"name": "tag", "datatype": "BYTES", "shape": [3, 1], "data": ["a", "b", "c"]}
            ],
        },
    )


@pytest.mark.parametrize(("status", "whole"), [(422, 400), (413, 400), (500, 500), (503, 503)])
def test_a_bad_item_fails_its_request_with_its_index_and_code(status: int, whole: int) -> None:
    assert answered(said(("a", 1)), wrong(status, "its_code")) == (
        whole,
        "",
        {"error": "item 1: its_code: why"},
    )


def test_with_partial_the_others_are_answered() -> None:
    items = said(("a", 1)), wrong(422, "its_code")
    status, _, reply = answered(*items, parameters={"partial": True})
    data = {output["name"]: output["data"] for output in reply["outputs"]}
    assert (status, data["tag"], data["errors"]) == (200, ["a", ""], ["", "its_code: why"])


@pytest.mark.parametrize(
    "body", [b"\xff\xd8", b"[1]", b'{"tags": [{"tag": "a", "score": NaN}]}', b'{"tags": [3]}']
)
def test_answers_without_a_form_in_v2_fail_their_request_alone(body: bytes) -> None:
    status, _, reply = answered(ItemAnswer(200, "", body))
    assert status == 500
    assert reply["error"].startswith("inference_failed: the answer has no form in V2")


def test_an_output_is_asked_for_once() -> None:
    outputs = [{"name": "tag"}, {"name": "tag"}]
    (refusal,) = spread_batch([raw(request_of("a", outputs=outputs))], TAGGER, 1000).items
    assert isinstance(refusal, Refusal) and "'tag' is asked for twice" in refusal.message


def test_a_request_that_cannot_be_read_is_refused_as_a_whole() -> None:
    (refusal,) = spread_batch([raw({"inputs": []})], TAGGER, 1000).items
    assert isinstance(refusal, Refusal)
    (exchange,) = spread_batch([raw({"inputs": []})], TAGGER, 1000).exchanges
    assert exchange
    whole = exchange.join([ItemAnswer(refusal.status, "", refusal.body("r"))])
    assert whole.status == 400
    assert json.loads(whole.encoded.body) == {"error": "body_unreadable: the request has no inputs"}


def test_an_output_that_the_task_has_not_is_refused_before_anything_runs() -> None:
    for outputs in ("label", "errors"):
        (refusal,) = spread_batch(
            [raw(request_of("a", outputs=[{"name": outputs}]))], TAGGER, 1000
        ).items
        assert isinstance(refusal, Refusal)
        assert "there are tag, score" in refusal.message


def test_an_archive_without_a_manifest_is_served_without_a_task(tmp_path: Path) -> None:
    assert served_by(tmp_path) == Served()
    manifest = {"model": "tagger", "version": 7, "task": "tag"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert served_by(tmp_path) == TAGGER


def test_items_run_by_the_engine_s_batches_and_late_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(request_filter, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    batches: list[list[int]] = []

    def run(places: list[int], values: list[dict[str, Any]]) -> list[str]:
        batches.append(places)
        now_s[0] += 6.0
        return ["answered"] * len(places)

    items = [Noted({}, f"{at:032}") for at in range(7)]
    filter_ = RequestFilter(1, None, 100, response_timeout_s=20)
    answers = filter_.answer(items, run, lambda at, refusal: refusal.code, batch_size=3)
    assert batches == [[0, 1, 2], [3, 4, 5]]  # 12 s are more than half of 20
    assert answers == ["answered"] * 6 + ["items_too_late"]


def test_no_request_waits_for_another_s_second_item() -> None:
    spread = spread_batch([raw(request_of("a", "b", "c")), raw("{}", "")], TAGGER, 1000)
    assert (spread.turns, spread.shares) == ([0, 1, 2, 0], [6, 6, 6, 2])
    ran: list[list[int]] = []

    def run(places: list[int], values: list[dict[str, Any]]) -> list[int]:
        ran.append(places)
        return places

    items = [Noted({}, f"{turn:032}", turn) for turn in spread.turns]
    filter_ = RequestFilter(1, None, 100)
    assert filter_.answer(items, run, lambda at, refusal: None, batch_size=2) == [0, 1, 2, 3]
    assert ran == [[0, 3], [1, 2]]


def test_each_item_is_kept_under_its_own_id(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(Plan(1.0, 1.0, 10**6).to_json(), encoding="utf-8")
    filter_ = RequestFilter(7, None, 1000, capture=Capture(tmp_path))
    filter_.read_batch(spread_batch([raw(request_of("a", "b"))], TAGGER, 1000).items)
    inputs = {at: fields_of(tmp_path / name_of(item_id("r", at, 2))) for at in range(2)}
    assert inputs == {0: {"text": b"a"}, 1: {"text": b"b"}}
