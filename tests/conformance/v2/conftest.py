"""A suite for servers of the Open Inference Protocol (V2), whoever wrote them:

    pytest tests/conformance/v2 --v2-url http://127.0.0.1:8080 --v2-model tagger

With ``--v2-grpc 127.0.0.1:8080`` also by gRPC.

The model is asked by what its own metadata say. Without an address there is nothing to test:
tests/e2e/test_v2.py runs the suite against a stack of ours.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conformance.v2.server import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--v2-url", help="the server, as http://127.0.0.1:8080")
    parser.addoption("--v2-grpc", help="its address for gRPC without TLS, as 127.0.0.1:8080")
    parser.addoption("--v2-model", help="the model that is asked; one whose inputs have items")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what there is no server for."""
    needs = {"test_v2_conformance.py": "--v2-url", "test_v2_conformance_grpc.py": "--v2-grpc"}
    option = needs.get(collection_path.name)
    return True if option and not config.getoption(option, None) else None


@pytest.fixture(scope="session")
def v2(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server under test."""
    address = request.config.getoption("--v2-url")
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as http:
        yield Server(http, request.config.getoption("--v2-model"))


@pytest.fixture(scope="session")
def v2_grpc(request: pytest.FixtureRequest) -> str:
    """The address of the server under test for gRPC."""
    return str(request.config.getoption("--v2-grpc"))
