"""Who reaches Envoy's admin page, and what Prometheus gets of it. Real Envoy."""

import stat

import httpx
import psutil
import pytest

from support.fake_torchserve import FakeTorchServe
from support.running_stack import RunningGateway, admin_page
from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.envoy_config import admin_socket

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
HARMFUL = [
    "/drain_listeners",
    "/healthcheck/fail",
    "/quitquitquit",
    "/reset_counters",
    "/runtime_modify?a=b",
    "/logging?level=trace",
    "/heapprofiler?enable=y",
]
SECRET = [
    "/config_dump",
    "/clusters",
    "/server_info",
    "/stats",
    "/",
    "/stats/prometheus/../../certs",
]


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    envoy.route(TAGGER, to=list(engines))
    return envoy


def test_the_admin_page_is_the_owner_s_alone(gateway: RunningGateway) -> None:
    socket = admin_socket(gateway.settings)
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    with admin_page(gateway.settings) as admin:
        assert "token-of-0" in admin.get("/config_dump").text  # that is why


def test_no_port_leads_to_the_admin_page(gateway: RunningGateway) -> None:
    settings = gateway.settings.gateway
    ports = {
        connection.laddr.port
        for connection in psutil.Process(gateway.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {settings.port, settings.metrics_port}
    for port in ports:
        for path in (*HARMFUL, *SECRET):
            for method in ("GET", "POST"):
                reply = httpx.request(method, f"http://127.0.0.1:{port}{path}", trust_env=False)
                assert reply.status_code == 404, (port, method, path)
                assert "token-of-0" not in reply.text
    assert gateway.http.post("/predictions/tagger").status_code == 200


def test_prometheus_reads_metrics_and_no_more(gateway: RunningGateway) -> None:
    gateway.http.post("/predictions/tagger")
    page = f"http://127.0.0.1:{gateway.settings.gateway.metrics_port}/stats/prometheus"
    metrics = httpx.get(page, trust_env=False)
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'envoy_cluster_name="tagger-1"' in metrics.text
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert httpx.request(method, page, trust_env=False).status_code == 404
