"""An offline job on a Ray cluster of three nodes, whose workers, actor, node and driver are killed.

Nodes are processes of this machine. Only this test's own cluster is ever named.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from support.batch_rows import COVERS, CRASH, output, rows_of, write_jsonl
from support.object_storage import object_storage
from vlserve.batch.job import Options
from vlserve.batch.run import KILLED, Crewing, run_batch
from vlserve.errors import BatchError
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve_worker.storage import path_of, write_whole

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROWS, PARTS = 5_000, 8
PORTS = ("metrics_agent", "metrics_export", "runtime_env_agent", "dashboard_agent_listen")
"""A node whose agents choose their own gives them 15 s to start, on a machine however busy."""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def node() -> dict[str, Any]:
    """A node's parameters."""
    settings = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    ports = zip(PORTS, free_ports(len(PORTS)), strict=True)
    return settings | {f"{name}_port": port for name, port in ports}


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """An object storage with a bucket ``covers``, whose credentials nodes have too."""
    with object_storage("covers") as query:
        yield query


@pytest.fixture(scope="module")
def client_port() -> int:
    """Where the cluster takes clients that are no nodes."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def cluster(storage: str, client_port: int) -> Iterator[Any]:
    """Three nodes, of which one may be killed."""
    from ray.cluster_utils import Cluster

    session = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes its address there
        for patience in ("agent_register_timeout_ms", "worker_register_timeout_seconds"):
            patch.setenv(f"RAY_{patience}", "600000" if patience.endswith("ms") else "600")
        head = {**node(), "temp_dir": session, "ray_client_server_port": client_port}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # logs that Ray leaves to be collected
            nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                nodes.add_node(**node())
            nodes.wait_for_nodes(timeout=300)
            yield nodes
        finally:
            nodes.shutdown()
            for log in Path(session).glob("*/logs/ray_client_server*.err"):
                # Shown where a test failed.
                print(log.name, log.read_text(encoding="utf-8")[-2000:])
            shutil.rmtree(session, ignore_errors=True)
            Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pack_echo(folder, "tagger", 1, crash_on_id=VOCABULARY[CRASH])
    for number in range(COVERS):
        Image.new("RGB", (48, 32), (number * 30, 90, 90)).save(folder / f"cover{number}.jpg")
    return folder


def finished(out: Path) -> int:
    return len(list((out / ".vlserve" / "receipts").glob("*.json")))


def wait_until(holds: Callable[[], Any], driver: "subprocess.Popen[bytes] | None" = None) -> Any:
    until = time.monotonic() + 600
    while not (value := holds()):
        assert time.monotonic() < until
        assert driver is None or driver.poll() is None, "the job has ended"
        time.sleep(0.1)
    return value


def workers(out: Path) -> list[psutil.Process]:
    """Processes of the job's workers."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "vlserve_worker.batch" in words and any(f'"out": "{out}"' in word for word in words):
            processes.append(process)
    return processes


def test_what_is_killed_loses_and_doubles_nothing(
    cluster: Any, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = write_jsonl(data / "in.jsonl", rows_of(ROWS, row40={"text": CRASH}))
    out = tmp_path / "out"
    command = [str(Path(sys.executable).with_name("vlserve")), "batch", str(data / "tagger-1.mar")]
    command += ["--input", str(file), "--output", str(out), "--cluster", cluster.address]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    request.addfinalizer(driver.kill)
    wait_until(lambda: finished(out) >= 1, driver)
    wait_until(lambda: workers(out), driver)[0].kill()
    wait_until(lambda: finished(out) >= 2, driver)
    actor = wait_until(lambda: workers(out), driver)[0].parent()
    assert actor is not None and "ray::" in " ".join(actor.cmdline())
    actor.kill()
    wait_until(lambda: finished(out) >= 3, driver)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    wait_until(lambda: finished(out) >= 4, driver)
    driver.kill()
    driver.wait()
    assert finished(out) < PARTS
    result = subprocess.run([*command, "--json"], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    report = json.loads(result.stdout)
    assert report["parts_of_earlier_runs"] >= 4 and report["rows"] == ROWS
    assert finished(out) == PARTS
    answers = output(out)
    assert [row["row"] for row in answers] == list(range(ROWS))
    errors = {row["row"]: row["error_code"] for row in answers if "error_code" in row}
    assert errors == {40: KILLED}
    wait_until(lambda: not workers(out))


@pytest.mark.parametrize("address", ["auto", "ray://"])
def test_a_cluster_has_other_names_too(
    cluster: Any, client_port: int, data: Path, tmp_path: Path, address: str
) -> None:
    file = write_jsonl(data / f"by_{address[:3]}.jsonl", rows_of(70, row40={"text": CRASH}))
    cluster_address = f"ray://127.0.0.1:{client_port}" if address == "ray://" else address
    command = [str(Path(sys.executable).with_name("vlserve")), "batch", str(data / "tagger-1.mar")]
    command += ["--input", str(file), "--output", str(tmp_path / "out")]
    command += ["--cluster", cluster_address, "--workers", "1"]
    environment = os.environ | ({"RAY_ADDRESS": cluster.address} if address == "auto" else {})
    result = subprocess.run([*command, "--json"], capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr.decode()
    report = json.loads(result.stdout)
    assert (report["rows"], report["errors"]) == (70, {KILLED: 1})
    assert [row["row"] for row in output(tmp_path / "out")] == list(range(70))
    wait_until(lambda: not workers(tmp_path / "out"))


def test_nodes_read_and_write_an_object_storage(cluster: Any, storage: str, data: Path) -> None:
    for file in [write_jsonl(data / "few.jsonl", rows_of(70)), *data.glob("*.jpg")]:
        write_whole(path_of(f"s3://covers/in/{file.name}?{storage}"), file.read_bytes())
    out = path_of(f"s3://covers/out?{storage}")
    report = run_batch(
        data / "tagger-1.mar",
        [f"s3://covers/in/few.jsonl?{storage}"],
        out,
        Options(),
        Crewing(1, cluster=cluster.address),
    )
    assert (report["rows"], report["failed"]) == (70, 0)
    parts = sorted(out.glob("part-*"), key=str)
    rows = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
    assert [row["row"] for row in rows] == list(range(70))


def test_a_node_without_a_package_is_named(
    cluster: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.batch.shipment.ENGINES", {"echo": "no_such_package"})
    file = write_jsonl(data / "some.jsonl", rows_of(3))
    crewing = Crewing(1, cluster=cluster.address)
    with pytest.raises(BatchError, match=r"node .*: it lacks the packages no_such_package"):
        run_batch(data / "tagger-1.mar", [str(file)], tmp_path / "out", Options(), crewing)
