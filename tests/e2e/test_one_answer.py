"""One archive, one answer: TorchServe, Triton and the pipeline in process say the same to each."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from support import bad_images, bad_requests
from support.engines import torchserve_only
from support.good_requests import good_requests, oddly_wrapped
from support.raw_http import MODEL, Case, encode, send
from support.request_bodies import as_form, as_json
from support.request_forms import variants
from support.request_variant import READ, Variant
from support.running_stack import RunningGateway
from support.running_triton import RunningTriton
from vlserve.control.domain import ModelRoute, Routing
from vlserve.drill.answer_comparison import ALONE, TOGETHER, Response, compare
from vlserve.runtime.answering import HTTP_STATUS
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import ItemError
from vlserve.testing import RunningStack
from vlserve_worker.request_filter import MAX_BODY_BYTES, Refusal, RequestFilter

ID = "one-answer"
CONNECTIONS = 16


def _as_case(variant: Variant, number: int) -> Case:
    query = f"?{urlencode(variant.query)}" if variant.query else ""
    return Case(
        f"form-{number}",
        200 if variant.outcome == READ else 400,
        "",
        body=variant.body,
        content_type=variant.content_type,
        path=f"/predictions/{MODEL}{query}",
        headers=(("Content-Encoding", variant.encoding),) if variant.encoding else (),
    )


CASES = [
    *bad_images.truncated(),
    *bad_images.too_many_pixels(),
    *bad_images.no_image(),
    *bad_images.bad_base64(),
    *bad_requests.bad_texts(),
    *bad_requests.bad_values(),
    *bad_requests.bad_fields(),
    *bad_requests.bad_json(),
    *bad_requests.bad_forms(),
    *bad_requests.bad_content_types(),
    *bad_requests.unknown_names(),
    *good_requests(),
    *oddly_wrapped(),
    as_form("graph-fails", 500, "", text="坏".encode()),
    as_json("graph-fails-in-json", 500, "", text="可爱坏"),
    *(_as_case(variant, number) for number, variant in enumerate(variants())),
    *(as_form(f"title-{n}", 200, "", text=f"第 {n} 课, lesson {n}".encode()) for n in range(20)),
]


@pytest.fixture(scope="module")
def torchserve(stack: RunningStack, echo_7: Path) -> Iterator[int]:
    """The port of a gateway before TorchServe."""
    stack.control.register(echo_7)
    stack.control.release("m", 7)
    yield stack.settings.gateway.port


@pytest.fixture(scope="module")
def on_triton(envoy: RunningGateway, triton: RunningTriton) -> int:
    """The port of a gateway before Triton, which knows the models that the other knows."""
    envoy.gateway.apply(Routing([ModelRoute("m", {7: 100}, (7,))], [triton.instance()]))
    return envoy.settings.gateway.port


def _ask(port: int, case: Case) -> Response:
    reply = send(port, encode(case, "m", ID), case.method)
    body = json.loads(reply.body)
    if body.get("request_id") != ID:
        body.pop("request_id", None)
    headers = {name: reply.headers.get(name, "") for name in ("content-type", "x-model-version")}
    return Response(reply.status, {**headers, "body": body})


@torchserve_only("it compares the two")
def test_each_request_has_one_answer(torchserve: int, on_triton: int) -> None:
    """One at a time; then many, so that batches differ."""
    assert len(CASES) >= 500
    alone = {case.name: _ask(torchserve, case) for case in CASES}
    triton = {case.name: _ask(on_triton, case) for case in CASES}
    comparison = compare("triton", triton, "torchserve", alone, ALONE)
    assert comparison.passed, comparison
    assert {response.status for response in alone.values()} >= {200, 400, 404, 413, 422, 500}
    for engine, port in (("torchserve", torchserve), ("triton", on_triton)):
        comparison = compare(f"{engine}, together", _together(port), "torchserve", alone, TOGETHER)
        assert comparison.passed, comparison


def _together(port: int) -> dict[str, Response]:
    def ask(case: Case) -> Response:
        return _ask(port, case)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return dict(zip([case.name for case in CASES], pool.map(ask, CASES), strict=True))


def test_it_is_the_pipeline_s_own(on_triton: int, echo_7: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    unpack_archive(echo_7, folder)
    pipeline, filter_ = open_folder(folder), RequestFilter(7, None, MAX_BODY_BYTES)

    def in_process(case: Case) -> Response:
        client_headers = {
            "x-vlserve-content-type": case.content_type,
            "x-vlserve-path": case.path.replace(MODEL, "m"),
            "x-vlserve-content-encoding": str(dict(case.headers).get("Content-Encoding", "")),
        }
        headers = [
            {"name": name.encode(), "value": value.encode()}
            for name, value in client_headers.items()
            if value
        ]
        request = {
            "headers": headers,
            "parameters": [{"name": "body", "value": bytearray(case.body)}],
        }
        (refusal,) = filter_.read_batch([request])
        if isinstance(refusal, Refusal):
            return Response(refusal.status, json.loads(refusal.body(ID)))
        values = {parameter["name"]: parameter["value"] for parameter in request["parameters"]}
        result = pipeline.run([read_request(values, ID)])
        (answer,), (text,) = result.answers, result.texts
        if isinstance(answer, ItemError):
            body = write_body(pipeline.manifest, ID, answer)
            return Response(HTTP_STATUS[answer.code], json.loads(body))
        return Response(200, json.loads(write_body(pipeline.manifest, ID, text)))

    cases = [case for case in CASES if _reaches_the_model(case)]
    assert len(cases) > 300
    responses = {case.name: _ask(on_triton, case) for case in cases}
    on_engine = {
        name: Response(response.status, response.body["body"])
        for name, response in responses.items()
    }
    expected = {case.name: in_process(case) for case in cases}
    comparison = compare("triton", on_engine, "in process", expected, ALONE)
    assert comparison.passed, comparison


def _reaches_the_model(case: Case) -> bool:
    whole = not case.raw and case.with_length and case.method == "POST"
    packed = {str(name) for name, _ in case.headers} <= {"Content-Encoding"}
    named = case.path.partition("?")[0] == f"/predictions/{MODEL}"
    return whole and packed and named and len(case.body) <= MAX_BODY_BYTES
