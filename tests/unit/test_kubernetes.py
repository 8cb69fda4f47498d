"""serving_config/kubernetes/, judged without a cluster: what would be sent is valid, closed in, and
fits the images, the settings and the programs that it names."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from support.kubernetes_files import (
    CHART,
    FOLDER,
    OF_OPERATORS,
    OVERLAYS,
    PLACES,
    Object,
    chart,
    containers,
    pods,
    rendered,
    unpacked_helm,
    without_cluster,
)
from vlserve.settings import Settings, load_settings
from vlserve.stack.containers import OPEN_S

ROOT = Path(__file__).parents[2]
VERSION = "1.37"
STACK = [f"overlays/{name}" for name in OVERLAYS]
KEYS = "a-key, another"


@pytest.fixture(scope="module")
def all_objects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Object]]:
    """Place -> what it renders to."""
    folder = tmp_path_factory.mktemp("kubernetes")
    return {place: rendered(place, folder) for place in PLACES}


@pytest.fixture
def objects(all_objects: Mapping[str, list[Object]], place: str) -> list[Object]:
    return all_objects[place]


@pytest.fixture(scope="module")
def runtime() -> Object:
    """KServe's."""
    return _loaded(FOLDER / "kserve" / "runtime.yaml")


def _loaded(file: Path) -> Object:
    content: Object = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def _of_kind(objects: list[Object], kind: str) -> Object:
    (match,) = [candidate for candidate in objects if candidate["kind"] == kind]
    return match


@pytest.mark.parametrize("place", PLACES)
def test_what_is_sent_is_valid(objects: list[Object]) -> None:
    for manifest in objects:
        if manifest["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_pod_of_kserves_runtime_is_valid(runtime: Object) -> None:
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert set(runtime["spec"]) - set(spec) == {
        "multiModel",
        "protocolVersions",
        "supportedModelFormats",
    }
    (format_,) = runtime["spec"]["supportedModelFormats"]
    model = _loaded(FOLDER / "kserve" / "inference_service.yaml")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == format_["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@pytest.mark.parametrize("place", PLACES)
def test_pods_are_closed_in(objects: list[Object]) -> None:
    for _, pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for name, container in containers(pod).items():
            _assert_closed_in(container, name)
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_kserves_container_is_closed_in(runtime: Object) -> None:
    (container,) = runtime["spec"]["containers"]
    _assert_closed_in(container, "kserve")
    assert container["securityContext"]["runAsNonRoot"] is True


def _assert_closed_in(container: Object, name: str) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True, name
    assert context["allowPrivilegeEscalation"] is False, name
    assert context["capabilities"] == {"drop": ["ALL"]}, name
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
    assert "memory" in container["resources"]["limits"], name
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", container["image"]), container["image"]


@pytest.mark.parametrize("place", PLACES)
def test_images_are_those_of_the_dockerfile(objects: list[Object]) -> None:
    targets = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    for _, pod in pods(objects):
        for container in containers(pod).values():
            name = container["image"].partition(":")[0].removeprefix("vlserve-")
            assert name in targets


@pytest.mark.parametrize("place", PLACES)
def test_selectors_ports_and_claims_are_of_the_pod(objects: list[Object]) -> None:
    deployment = _of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for kind in ("PodDisruptionBudget", "ServiceMonitor"):
        assert _of_kind(objects, kind)["spec"]["selector"]["matchLabels"] == labels
    policy = _of_kind(objects, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    service = _of_kind(objects, "Service")
    assert service["spec"]["selector"] == labels == service["metadata"]["labels"]
    pod = deployment["spec"]["template"]["spec"]
    ports = {
        port["name"]: port["containerPort"]
        for container in containers(pod).values()
        for port in container.get("ports", [])
    }
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert {rule["ports"][0]["port"] for rule in policy["ingress"]} == set(ports)
    (endpoint,) = _of_kind(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    defaults = Settings().gateway
    assert ports == {"http": defaults.port, "metrics": defaults.metrics_port}


@pytest.mark.parametrize("place", PLACES)
def test_settings_can_be_read_and_the_gateway_asks_for_keys(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ((_, pod),) = pods(objects)
    names = [name for name in ("control", "gateway", "serve") if name in containers(pod)]
    for name in names:
        with monkeypatch.context() as environment:
            environment.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
            for variable, value in _variables(containers(pod)[name], objects).items():
                environment.setenv(variable, value)
            settings = load_settings()
        assert settings.gateway.api_keys == ("a-key", "another")
        assert settings.gateway.host == settings.gateway.metrics_host == "0.0.0.0"
        assert "workers" in settings.engine.model_fields_set  # else as many as the node has cores
        _assert_time_to_end(pod, settings)


def _assert_time_to_end(pod: Object, settings: Settings) -> None:
    longest_drain_s = OPEN_S + settings.gateway.timeout_s
    sleeps_s = 5
    assert pod["terminationGracePeriodSeconds"] > longest_drain_s + sleeps_s + 20


def _variables(container: Object, objects: list[Object]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= _named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container["env"]:
        variables[entry["name"]] = entry.get("value", KEYS)
        if "valueFrom" in entry:
            assert entry["valueFrom"]["secretKeyRef"] == {"name": "vlserve-keys", "key": "api-keys"}
    return variables


def _named(objects: list[Object], kind: str, name: str) -> Object:
    (match,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return match


@pytest.mark.parametrize("place", STACK)
def test_the_ledger_has_one_writer(objects: list[Object]) -> None:
    deployment = _of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    claim = _of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    ((_, pod),) = pods(objects)
    used = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
    assert {"claimName": claim["metadata"]["name"]} in used


@pytest.mark.parametrize("place", STACK)
def test_the_stack_is_that_of_docker_compose(objects: list[Object], place: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    ((_, pod),) = pods(objects)
    ours = containers(pod)
    engines = {"cpu": {"torchserve"}, "gpu": {"triton"}, "two-engines": {"torchserve", "triton"}}
    assert set(ours) == {"prepare", "gateway", "control", *engines[place.rpartition("/")[2]]}
    for name in set(ours) - {"gateway"}:
        assert ours[name]["image"] == services[name]["image"]
    for name in set(ours) - {"prepare", "gateway"}:
        assert ours[name]["restartPolicy"] == "Always"  # a sidecar: it ends after the gateway
        probe = ours[name]["readinessProbe"]["exec"]["command"]
        assert ["CMD", *probe] == services[name]["healthcheck"]["test"]
    _, *options = ours["gateway"]["args"][0].split('"$(')[1].split(')" ')
    assert " ".join(options).split() == [
        option
        for option in services["gateway"]["command"]
        if option not in ("--log-path", "/var/lib/vlserve/state/logs/gateway.log")
    ]


def test_the_only_triton_has_the_folders_and_ports_of_the_first_instance(
    all_objects: Mapping[str, list[Object]], tmp_path: Path
) -> None:
    from vlserve.control.engine.endpoints import endpoints
    from vlserve.settings_sections import EngineSettings

    state = Path("/var/lib/vlserve/state")
    settings = Settings(project_dir=tmp_path, engine=EngineSettings(kind="triton"))
    (endpoint,) = endpoints(settings)
    ((_, pod),) = pods(all_objects["overlays/gpu"])
    triton = containers(pod)["triton"]
    variables = {entry["name"]: entry.get("value") for entry in triton["env"]}
    assert variables["ENGINE_DIR"] == str(state / endpoint.name)
    assert variables["TMPDIR"] == str(state / "run" / endpoint.name)
    assert variables["HTTP_PORT"] == str(endpoint.inference_port)
    assert variables["METRICS_PORT"] == str(endpoint.metrics_port)
    assert variables["GRPC_PORT"] == str(endpoint.grpc_management_port)
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_autoscalers_metric_is_one_that_the_gateway_exports(
    all_objects: Mapping[str, list[Object]],
) -> None:
    (metric,) = _of_kind(all_objects["serve"], "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = _loaded(FOLDER / "serve" / "prometheus_adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series, selector = rule["seriesQuery"].split("{")
    exports = (ROOT / "tests" / "unit" / "gateway_metrics.txt").read_text("utf-8")
    assert f"{series} gauge" in exports.splitlines()
    assert 'envoy_http_conn_manager_prefix="predictions"' in selector
    assert "stat_prefix: predictions" in (FOLDER.parent / "gateway" / "envoy.yaml").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("file", ["serve/deployment.yaml", "kserve/runtime.yaml"])
def test_readiness_and_life_are_asked_of_the_gateway(file: str) -> None:
    text = (FOLDER / file).read_text("utf-8")
    probes: dict[str, Any] = dict(re.findall(r"(\w+Probe):.*\n +httpGet: {path: ([^,]+),", text))
    assert probes["readinessProbe"] == probes["startupProbe"] == "/v2/health/ready"
    assert probes["livenessProbe"] in ("/health", "/v2/health/live")


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the layer's Helm is for x86_64 alone")
def test_the_chart_is_the_overlay_for_processors(
    all_objects: Mapping[str, list[Object]], tmp_path: Path
) -> None:
    helm = unpacked_helm(tmp_path)
    result = without_cluster([str(helm), "lint", "--strict", str(CHART)], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    by_helm = {(o["kind"], o["metadata"]["name"]): o for o in chart(helm, tmp_path)}
    by_kustomize = {(o["kind"], o["metadata"]["name"]): o for o in all_objects["overlays/cpu"]}
    assert by_helm == by_kustomize
    options = ("--set", "prometheus.serviceMonitor=false", "--set", "storage.storageClassName=ssd")
    other = chart(helm, tmp_path, *options, "--set", "apiKeysSecret=mine")
    assert "ServiceMonitor" not in {manifest["kind"] for manifest in other}
    assert _of_kind(other, "PersistentVolumeClaim")["spec"]["storageClassName"] == "ssd"
    ((_, pod),) = pods(other)
    (key,) = containers(pod)["control"]["env"]
    assert key["valueFrom"]["secretKeyRef"]["name"] == "mine"
