"""Workers of an offline job on the nodes of a Ray cluster.

Ray's core alone: an actor a worker, which runs the same program as a worker of this machine. The
archive travels by the object store. The driver hands out parts, and orders again what died: Ray
restarts and repeats nothing.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from vlserve.batch.shipment import Shipment
from vlserve.batch.workers import Reply, working
from vlserve.errors import BatchError
from vlserve.extras import require_extras
from vlserve_worker.batch_parts import STATE
from vlserve_worker.storage import path_of, write_whole

LOCAL = "local"
"""Ray's word for a cluster of one's own."""
KILLED_EXIT = -9
"""Of a worker whose actor or node has died."""
_CONNECT_ATTEMPTS = 3
_CHECK_WITHIN_S = 300.0
_STOP_WITHIN_S, _STOP_AT_ONCE_WITHIN_S = 10.0, 3.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect as a driver to the cluster at ``address`` while the body runs.

    Raises:
        BatchError: There is none, or it has another Python or Ray.
        ExtraMissing: Ray is not installed.
    """
    require_extras("cluster")
    if address == LOCAL:
        raise BatchError("--cluster local: a job of this machine alone goes without --cluster")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    try:
        _connect(address)
    except Exception as error:  # of many classes, some of them bare
        raise BatchError(f"--cluster {address} cannot be reached: {error}") from error
    try:
        with redirect_stdout(sys.stderr):  # on which Ray tells of nodes that die
            yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Connect, again where the head node could not start a process for this client: nothing of the
    job has begun by then, and a busy node can the next time."""
    import ray

    for attempt in range(1, _CONNECT_ATTEMPTS + 1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except ConnectionAbortedError:
            ray.shutdown()
            if attempt == _CONNECT_ATTEMPTS:
                raise
            time.sleep(attempt)
        else:
            return


def check_nodes(shipment: Shipment) -> None:
    """Have every node look whether it can do the job.

    Raises:
        BatchError: One cannot: it says which, and why.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {
        str(node["NodeID"]): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }
    if not nodes:
        raise BatchError("the cluster has no node with a CPU")
    token, out = uuid4().hex, shipment.job.out
    file = path_of(out) / STATE / f"check-{token}"
    write_whole(file, token.encode())
    folders = {str(source.parent): str(source) for source in shipment.sources}
    arguments = (shipment.program, shipment.packages, list(folders.values()), out, token)
    check = ray.remote(num_cpus=0, max_retries=0)(_node_code()[1])
    try:
        checks = {
            check.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(*arguments): name
            for node, name in nodes.items()
        }
        results = [_can_work(answer, name) for answer, name in checks.items()]
        if not any(results):
            raise BatchError("the nodes of the cluster are gone")
    finally:
        file.unlink(missing_ok=True)


def _can_work(answer: Any, name: str) -> bool:
    """Wait for a node's answer; False where the node has gone, which its cluster hears late.

    Raises:
        BatchError: It cannot do the job.
    """
    import ray

    errors_of_lost_nodes = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError)
    try:
        troubles = ray.get(answer, timeout=_CHECK_WITHIN_S)
    except errors_of_lost_nodes:
        return False
    except ray.exceptions.RayError as error:
        troubles = [f"its check ended: {str(error).strip().splitlines()[-1]}"]
    if troubles:
        raise BatchError(f"node {name}: {'; '.join(troubles)}")
    return True


class ClusterWorker:
    """An actor, which has a worker's process. ``pending``: its replies that are still to come."""

    def __init__(self, actor: Any) -> None:
        self.heard_at = time.monotonic()
        self.exit_code: int | None = None
        self.is_placed = False
        self._actor = actor
        self.pending = actor.replies.remote(0.0)

    def order(self, order: Mapping[str, Any]) -> None:
        self.heard_at = time.monotonic()
        lines = Path(order["spool"]).read_bytes() if order["spool"] else None
        self._actor.order.remote(dict(order), lines)

    def ask(self) -> None:
        """Ask for what it says next, or in a second."""
        self.pending = self._actor.replies.remote(1.0)

    def stop(self, *, at_once: bool) -> Any:
        return self._actor.stop.remote(at_once)

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


class ClusterCrew:
    """Workers on nodes; one that dies is replaced, on whichever node has a CPU left."""

    def __init__(self, shipment: Shipment, count: int) -> None:
        import ray

        self._job = asdict(shipment.job)
        self._archive = ray.put(shipment.archive.read_bytes())
        self._program = shipment.program
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4}
        self._class = ray.remote(**options, scheduling_strategy="SPREAD")(_node_code()[0])
        self._words = "it printed nothing"
        self._next = 0
        self.workers: dict[int, ClusterWorker] = {}
        for _ in range(count or int(ray.cluster_resources()["CPU"])):
            self.start_one()

    def start_one(self) -> None:
        """Start one more worker, as soon as a node has a CPU left."""
        actor = self._class.remote(self._program, self._job, [self._archive])
        self.workers[self._next] = ClusterWorker(actor)
        self._next += 1

    def replies(self, wait_s: float) -> Sequence[Reply]:
        """Wait up to ``wait_s`` for a reply and return all that are there."""
        import ray

        numbers = {worker.pending: number for number, worker in self.workers.items()}
        ready, _ = ray.wait(list(numbers), num_returns=1, timeout=wait_s)
        if ready:
            ready, _ = ray.wait(list(numbers), num_returns=len(numbers), timeout=0)
        replies = [reply for reference in ready for reply in self._replies(numbers[reference])]
        self._let_unplaced_wait()
        return replies

    def remove(self, number: int) -> ClusterWorker:
        """Forget a worker that has ended, or end it."""
        worker = self.workers.pop(number)
        if worker.exit_code is None:
            self._stop([worker], at_once=True)
        return worker

    def stop(self, *, at_once: bool = False) -> None:
        """End every worker."""
        self._stop(list(self.workers.values()), at_once=at_once)
        self.workers.clear()

    def last_words(self) -> str:
        """Return the last line that a dead worker printed."""
        return self._words

    def _replies(self, number: int) -> Sequence[Reply]:
        import ray

        worker = self.workers[number]
        try:
            messages = ray.get(worker.pending)
        except ray.exceptions.RayError as error:  # the actor or its node has died
            worker.exit_code = KILLED_EXIT
            self._words = str(error).strip().splitlines()[-1]
            return [Reply(number, None)]
        if messages or not worker.is_placed:
            worker.is_placed, worker.heard_at = True, time.monotonic()
        if messages and "ended" in messages[-1]:
            worker.exit_code, self._words = messages[-1]["ended"], messages[-1]["last_words"]
            self._stop([worker], at_once=True)
            return [*(Reply(number, message) for message in messages[:-1]), Reply(number, None)]
        worker.ask()
        return [Reply(number, message) for message in messages]

    def _let_unplaced_wait(self) -> None:
        """Let a worker for which no node has room wait as long as others work."""
        if any(worker.is_placed for worker in self.workers.values()):
            for worker in self.workers.values():
                if not worker.is_placed:
                    worker.heard_at = time.monotonic()

    def _stop(self, workers: Sequence[ClusterWorker], *, at_once: bool) -> None:
        import ray

        ends = [worker.stop(at_once=at_once) for worker in workers]
        if ends:
            within_s = _STOP_AT_ONCE_WITHIN_S if at_once else _STOP_WITHIN_S
            ray.wait(ends, num_returns=len(ends), timeout=within_s)
        for worker in workers:
            worker.kill()


@contextmanager
def running_on(shipment: Shipment, count: int) -> Iterator[ClusterCrew]:
    """Run ``count`` workers on the cluster that this process is connected to, 0: one a CPU; when
    the body ends none is left.

    Raises:
        BatchError: A node cannot do the job.
    """
    check_nodes(shipment)
    with working(ClusterCrew(shipment, count)) as crew:
        yield crew


def _node_code() -> tuple[Any, Any]:
    """Return the class of actors and the function that checks a node.

    They stand inside a function, and name nothing outside of it: Ray sends their code then. By
    their names no node could import them.
    """

    def import_program(program: bytes) -> str:
        """Return the folder from which it is imported."""
        import io
        import sys
        import tempfile
        import zipfile

        folder = tempfile.mkdtemp(prefix="vlserve-node-")
        with zipfile.ZipFile(io.BytesIO(program)) as members:
            members.extractall(folder)
        sys.path.insert(0, folder)
        return folder

    class Node:
        def __init__(self, program: bytes, job: dict[str, Any], archive: list[Any]) -> None:
            import ray

            folder = import_program(program)
            from vlserve_worker.batch_node import NodeJob, NodeWorker

            self._worker = NodeWorker(NodeJob(**job), folder, lambda: ray.get(archive[0]))

        def order(self, order: dict[str, Any], lines: bytes | None) -> None:
            self._worker.order(order, lines)

        def replies(self, wait_s: float) -> Any:
            return self._worker.replies(wait_s)

        def pids(self) -> Any:
            return self._worker.pids()

        def stop(self, at_once: bool) -> None:
            self._worker.stop(at_once=at_once)

    def check(program: bytes, *arguments: Any) -> Any:
        import shutil

        folder = import_program(program)
        from vlserve_worker.batch_node import check_node

        try:
            return check_node(*arguments)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return Node, check
