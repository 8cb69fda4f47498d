"""One table of header names, and everything that sends or reads one held to it."""

import re
from pathlib import Path

import pytest

from vlserve.runtime import answering, headers
from vlserve.runtime.errors import ErrorCode
from vlserve_worker import bodies, request_filter, service
from vlserve_worker.v2 import exchange

PROJECT = Path(__file__).parents[2]
TABLE = {name: value for name, value in vars(headers).items() if name.isupper()}
OF_0_1_0 = {
    "API_KEY": "x-api-key",
    "MODEL_VERSION": "x-model-version",
    "REQUEST_ID": "x-request-id",
    "STICKY_KEY": "x-sticky-key",
    "OURS": "x-vlserve-",
    "SENT_CONTENT_TYPE": "x-vlserve-content-type",
    "RETRY": "x-vlserve-retry",
    "SENT_REQUEST_ID": "x-vlserve-sent-request-id",
    "SHADOW": "x-vlserve-shadow",
    "STEP": "x-vlserve-step",
    "ANSWERED_BY": "x-vlserve-version",
}
FOLDERS = ("src", "handlers", "loadtest", "serving_config", "benchmarks", "examples")
NAMES = re.compile(r"\bx-(?:(?:api|model|request|sticky)-[a-z-]+|vlserve-[a-z-]*)", re.IGNORECASE)


def names_in(text: str) -> set[str]:
    return {name.lower() for name in NAMES.findall(text)}


def test_names_do_not_change() -> None:
    assert {name: TABLE.get(name) for name in OF_0_1_0} == OF_0_1_0
    assert len(set(TABLE.values())) == len(TABLE)


def test_the_worker_uses_the_table_s_headers() -> None:
    assert bodies.SENT_TYPE.decode() == headers.SENT_CONTENT_TYPE
    assert bodies.SENT_ENCODING.decode() == headers.SENT_CONTENT_ENCODING
    assert bodies.SENT_PATH.decode() == headers.SENT_PATH
    assert exchange.PROTOCOL.decode() == headers.PROTOCOL
    assert exchange.JSON_LENGTH.decode() == headers.SENT_JSON_LENGTH
    assert bodies.REQUEST_ID.decode() == headers.REQUEST_ID
    assert headers.ANSWERED_BY == service.ANSWERED_BY


def test_the_worker_s_codes_have_the_archive_s_status() -> None:
    for code, status in request_filter.HTTP_STATUS.items():
        assert answering.HTTP_STATUS[ErrorCode(code)] == status


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_has_another_name(folder: str) -> None:
    files = [
        path for kind in ("py", "yaml", "lua") for path in (PROJECT / folder).rglob(f"*.{kind}")
    ]
    assert files
    unknown = {
        file.name: names
        for file in files
        if (names := names_in(file.read_text(encoding="utf-8")) - set(TABLE.values()))
    }
    assert unknown == {}


def test_the_gateway_s_files_use_each_name_that_is_theirs() -> None:
    folder = PROJECT / "serving_config" / "gateway"
    names = names_in("".join(file.read_text(encoding="utf-8") for file in folder.iterdir()))
    # envoy_config.py renders x-api-key, the routes x-model-version and those of V2
    exceptions = {
        headers.MODEL_VERSION,
        headers.API_KEY,
        headers.PROTOCOL,
        headers.SENT_JSON_LENGTH,
    }
    assert names >= set(TABLE.values()) - exceptions
