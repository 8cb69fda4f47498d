"""`vlserve serve`: one archive behind the gateway, in the foreground, without a ledger.

The processes are those of `vlserve up` without the control service, in a state folder of their own.
This process loads the version, keeps it loaded and routed, and ends them all as it ends.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from vlserve.control.domain import EngineKind, VersionRecord
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.gateway.envoy_config import access_log
from vlserve.control.placement import Placement
from vlserve.control.reconcile.liveness import Liveness
from vlserve.control.reconcile.one_version import STARTING, OneVersion, routing_of
from vlserve.errors import StackError
from vlserve.lock_holders import holder_of, open_lock, try_lock
from vlserve.settings import Settings
from vlserve.stack import supervisord
from vlserve.stack.containers import OPEN_S
from vlserve.stack.cuda import refuse_missing_cuda
from vlserve.stack.envoy_binary import verified_envoy_path
from vlserve.stack.folders import make_private
from vlserve.stack.followed_logs import FollowedLogs
from vlserve.stack.lone_archive import archive_in, taken_over
from vlserve.stack.ports import refuse_busy_ports, refuse_equal_ports
from vlserve.stack.starting import (
    Progress,
    asking,
    questions,
    wait_until_answering,
    with_engine_that_runs,
)
from vlserve.stack.stopping import end, stop_processes
from vlserve.supervisor import Supervisor

_ANSWER_S = 30.0
_LOOK_S = 0.2
_POLL_S = 0.05
_KEPT = ("logs", "stack.lock")


class Serving:
    """One archive that is served; see `started`."""

    def __init__(
        self,
        settings: Settings,
        record: VersionRecord,
        version: OneVersion,
        gateway: EnvoyGateway,
        supervisord: subprocess.Popen[bytes],
    ) -> None:
        self.settings = settings
        self.record = record
        self._one = version
        self._gateway = gateway
        self._supervisord = supervisord

    def load(self) -> None:
        """Return once the version is loaded, answers its probes and is warm.

        Raises:
            LoadFailed: It does not come up, or answers wrong.
        """
        self._one.begin().result()
        self._one.start()

    def watch(self) -> None:
        """Return never.

        Raises:
            StackError: supervisord has ended, and with it what brings processes back.
        """
        while self._supervisord.poll() is None:
            time.sleep(_LOOK_S)
        raise StackError(f"supervisord has ended with exit code {self._supervisord.returncode}")

    def leave(self, progress: Progress) -> None:
        """Say that it is not ready any more, and answer the requests that come in the meantime.

        Raises:
            StackError: Some were not answered in time.
        """
        progress("not ready any more; waiting for running requests")
        self._one.leave("it is being stopped")
        timeout_s = self.settings.gateway.timeout_s
        if not self._gateway.drain(timeout_s, open_s=OPEN_S) and self._gateway.start() is not None:
            raise StackError(f"some requests were not answered within {timeout_s:g} s")


@contextmanager
def started(
    settings: Settings,
    place: Path,
    progress: Progress,
    show_log: Callable[[str, str], None],
) -> Iterator[Serving]:
    """Start the gateway and the engine for an archive while the body runs; afterwards no process of
    them is left.

    Args:
        settings: of the project, whose own stack may run on other ports meanwhile.
        place: the archive, or a folder that holds one.
        show_log: takes the name of a process and a line that it logged.

    Raises:
        ArchiveError: It cannot be served.
        PortBusy, SettingsError: The settings do not fit.
        StackError: Another process serves in the same state folder, or a program does not start.
    """
    own = with_engine_that_runs(own_settings(settings), progress)
    refuse_equal_ports(own, with_control=False)
    if own.gateway_tls is not None:
        own.gateway_tls.refuse_unusable()
    refuse_missing_cuda(own)
    with ExitStack() as stack:
        stack.enter_context(_alone(own))
        stop_processes(own, progress)  # of one whose kernel did not end them with it
        refuse_busy_ports(own, with_control=False)
        _clear(own.state_dir)
        progress(f"reading {place}")
        record = taken_over(archive_in(place), own.model_store, own.engine.kinds[0], own.trust)
        stack.enter_context(FollowedLogs(_logs(own), show_log))
        process = stack.enter_context(_running(own, record, progress))
        gateway = stack.enter_context(closing(EnvoyGateway(own)))
        engine = stack.enter_context(closing(EngineGroup(endpoints(own), own.engine)))
        with asking(own) as http:
            wait_until_answering(own, questions(own, http), progress)
        version = OneVersion(record, engine, gateway, own.answer_log, own.control.tick_s)
        stack.callback(version.stop)
        liveness = Liveness(version, engine, gateway, version, own.engine, Supervisor(own).kill)
        liveness.start()
        stack.callback(liveness.stop)
        yield Serving(own, record, version, gateway, process)


def own_settings(settings: Settings) -> Settings:
    """Return the settings with folders that no stack of the project uses, and one engine alone."""
    state_dir = settings.state_dir / "serve"
    kind: EngineKind = settings.engine.kinds[0]
    own = settings.model_copy(
        update={
            "state_dir": state_dir,
            "model_store": state_dir / "archive",
            "engine": settings.engine.on(kind),
        }
    )
    return Settings.model_validate(own.model_dump())  # paths follow the changes


def _clear(state_dir: Path) -> None:
    """Remove what an earlier start left, but the logs: a routing above all, which is not ours."""
    for entry in state_dir.iterdir():
        if entry.name in _KEPT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _running(
    settings: Settings, record: VersionRecord, progress: Progress
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the processes, and end them after the body; yields supervisord."""
    process = None
    try:
        process = _start(settings, record, progress)
        _wait_until_it_answers(process, Supervisor(settings))
        yield process
    finally:
        end(settings, progress)
        if process is not None:
            process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], supervisor: Supervisor) -> None:
    deadline = time.monotonic() + _ANSWER_S
    while not supervisor.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StackError("supervisord does not start; it says why above, if it does")
        time.sleep(_POLL_S)


def _start(
    settings: Settings, record: VersionRecord, progress: Progress
) -> subprocess.Popen[bytes]:
    verified_envoy_path()
    progress("starting supervisord")
    (settings.state_dir / "logs").mkdir(parents=True, exist_ok=True)
    with closing(EnvoyGateway(settings)) as gateway:
        placement = Placement({each.name: each.kind for each in endpoints(settings)})
        bootstrap = gateway.prepare(routing_of(record, [], placement, STARTING))
    conf = supervisord.write_configuration(settings, bootstrap, with_control=False)
    make_private(settings.socket_dir)
    return supervisord.start_below(conf, settings)


def _logs(settings: Settings) -> dict[str, Path]:
    """Return the logs that are shown. Of TorchServe's workers it is what Java passes on."""
    logs = settings.state_dir / "logs"
    programs = ["gateway", *(endpoint.name for endpoint in endpoints(settings))]
    return {"access": access_log(settings)} | {name: logs / f"{name}.log" for name in programs}


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two that serve in one folder would take each other's files. StackError names the other."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    file = settings.state_dir / "stack.lock"
    with open_lock(file) as lock:
        if not try_lock(lock):
            raise StackError(
                f"{holder_of(file)} serves an archive in {settings.state_dir} already: end it, or "
                "set state_dir (VLSERVE_STATE_DIR) and ports of its own for this one"
            )
        yield
