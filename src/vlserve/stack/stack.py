"""up, down, status: every process of one stack, run by supervisord.

Every process carries the stack's state_dir in its environment, so that those whose supervisord was
killed are found again.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial

import httpx
import psutil

from vlserve.control.client import PLAIN_HTTP, ControlClient
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.lifecycle.rebuilding import rebuild_ledger
from vlserve.control.store.kept_archives import engines_in_use, refuse_lost_ledger
from vlserve.control.wire.views import TroubleView
from vlserve.errors import ControlError, StackError, StackUnwell, SupervisorHangs
from vlserve.lock_holders import holder_of, open_lock, try_lock
from vlserve.running_settings import (
    differing,
    keep_settings,
    read_kept,
    settings_file,
    settings_of_running,
)
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack import shared_memory, supervisord
from vlserve.stack.cuda import refuse_missing_cuda
from vlserve.stack.envoy_binary import verified_envoy_path
from vlserve.stack.folders import make_private, refuse_store_in_state
from vlserve.stack.ports import refuse_busy_ports, refuse_equal_ports
from vlserve.stack.triton_program import why_triton_cannot_run
from vlserve.supervisor import Process, Supervisor

Progress = Callable[[str], None]

START_TIMEOUT_S = 90.0
RESTORE_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0  # over the sum of stopwaitsecs in serving_config/supervisor/
LOCK_TIMEOUT_S = 300.0  # an `up` that restores slow models takes less
_HANGS_S = 10.0
_POLL_S = 0.1
_STARTS_BEFORE_GIVING_UP = 3


def up(settings: Settings, progress: Progress, rebuild: bool = False) -> None:
    """Start every process and wait until each answers and the engine holds again what it held;
    nothing happens to what is up already, but that a drained gateway is opened again.
    PortBusy names who holds a port; StackError shows the log of what did not start. What this
    call started does not stay up when it fails; a stack that was up does. It stays up with
    StackUnwell too, which names what needs help, as a version whose archive is lost.

    Args:
        rebuild: whether to make a lost or damaged ledger anew first: see `rebuild_ledger`.

    Raises:
        SettingsError: two servers would listen on one port, or model_store lies in state_dir.
        LedgerLost, LedgerDamaged: it must be mended first; nothing was started.
    """
    refuse_equal_ports(settings)
    refuse_store_in_state(settings)
    settings = _with_engine_that_runs(_with_engine_of_models(settings, progress), progress)
    refuse_missing_cuda(settings)
    with _one_at_a_time(settings, progress):
        if rebuild:
            for line in rebuild_ledger(settings):
                progress(line)
        else:
            refuse_lost_ledger(settings.model_store)
        if Supervisor(settings).answers():
            _refuse_other_settings(settings)
            _reopen_gateway(settings, progress)
            _mend_what_hangs(settings, progress)
            _wait_until_well(settings, progress)
            return
        _stop_processes(settings, progress)  # left behind by a supervisord that died or hangs
        refuse_busy_ports(settings)
        try:
            _start(settings, progress)
            _wait_until_well(settings, progress)
        except StackUnwell:
            raise
        except BaseException:  # Ctrl-C too
            _stop(settings, progress)
            raise


def _with_engine_of_models(settings: Settings, progress: Progress) -> Settings:
    """Return the settings with the engine that serves the models already, where nobody chose one:
    a new release of vlserve with another default moves no version."""
    if "kind" in settings.engine.model_fields_set:
        return settings
    running = read_kept(settings.state_dir)
    kinds = set(running.engine.kinds if running else engines_in_use(settings.model_store))
    if kinds <= set(settings.engine.kinds):
        return settings
    kind = "both" if len(kinds) > 1 else kinds.pop()
    progress(f"the models are on {kind}, which stays their engine: engine.kind chooses another")
    return settings.model_copy(update={"engine": settings.engine.on(kind)})


def _with_engine_that_runs(settings: Settings, progress: Progress) -> Settings:
    """Return the settings, on TorchServe where Triton is asked for and cannot run here."""
    if settings.engine.kind == "torchserve" or (reason := why_triton_cannot_run()) is None:
        return settings
    progress(f"Triton cannot run here: {reason}; TorchServe takes its place")
    return settings.model_copy(update={"engine": settings.engine.on("torchserve")})


def down(settings: Settings, progress: Progress) -> bool:
    """Let running requests finish and stop every process; whether anything was up. StackError
    when a process outlives even SIGKILL."""
    if not settings.state_dir.exists():
        return False
    with _one_at_a_time(settings, progress):
        return _stop(settings_of_running(settings), progress)


def status(settings: Settings) -> list[Process]:
    """The programs of the stack; none when it is down. SupervisorHangs."""
    try:
        return Supervisor(settings).processes()
    except SupervisorHangs:
        raise
    except StackError:
        return []


def _start(settings: Settings, progress: Progress) -> None:
    verified_envoy_path()  # before it judges the last routing
    progress("starting supervisord")
    (settings.state_dir / "logs").mkdir(parents=True, exist_ok=True)
    settings.model_store.mkdir(parents=True, exist_ok=True)
    with closing(EnvoyGateway(settings)) as gateway:
        bootstrap = gateway.prepare()
    conf = supervisord.write_configuration(settings, bootstrap)
    keep_settings(settings)
    make_private(settings.socket_dir)
    supervisord.start(conf, settings)


def _stop(settings: Settings, progress: Progress) -> bool:
    running = Supervisor(settings)
    was_up = running.answers()
    if was_up:
        _drain(settings, progress)
        progress("stopping every process")
        with suppress(StackError):  # what it does not stop is stopped below
            running.shutdown()
            # Left alone, supervisord looks once a second whether a program has ended.
            _wait_until_gone(settings, STOP_TIMEOUT_S, meanwhile=running.answers)
    orphans = _stop_processes(settings, progress)
    shared_memory.remove(shared_memory.stack_prefix(settings.state_dir))
    for endpoint in endpoints(settings):
        endpoint.pid_file.unlink(missing_ok=True)
    shutil.rmtree(settings.socket_dir, ignore_errors=True)
    settings_file(settings.state_dir).unlink(missing_ok=True)
    return was_up or orphans


def _reopen_gateway(settings: Settings, progress: Progress) -> None:
    """Restart a gateway that was drained: a `down` that was cut short leaves it so, for good."""
    with closing(EnvoyGateway(settings)) as gateway:
        if gateway.is_drained():
            progress("the gateway was drained and takes no requests: restarting it")
            Supervisor(settings).restart("gateway")


def _drain(settings: Settings, progress: Progress) -> None:
    progress("waiting for running requests")
    with closing(EnvoyGateway(settings)) as gateway:
        gateway.drain(settings.gateway.timeout_s)


def _mend_what_hangs(settings: Settings, progress: Progress) -> None:
    """Kill what has run for a while and does not answer; supervisord starts it anew."""
    deadline = time.monotonic() + _HANGS_S
    with (
        httpx.Client(trust_env=False, timeout=_HANGS_S, verify=PLAIN_HTTP) as http,
        ControlClient.of(settings) as control,
    ):
        silent = _questions(settings, http, control)
        while silent := {name: is_up for name, is_up in silent.items() if not is_up()}:
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    for process in Supervisor(settings).processes():
        if process.name in silent and _age_s(process.pid) > _HANGS_S:
            progress(f"{process.name} runs and does not answer: starting it anew")
            Supervisor(settings).kill(process.name)


def _age_s(pid: int | None) -> float:
    """How long a process has run, whatever the system's clock did since; 0 where it has ended."""
    try:
        return time.time() - psutil.Process(pid).create_time() if pid else 0.0
    except psutil.NoSuchProcess:
        return 0.0


def _wait_until_well(settings: Settings, progress: Progress) -> None:
    _wait_until_answering(settings, progress)
    _wait_until_restored(settings, progress)


def _wait_until_answering(settings: Settings, progress: Progress) -> None:
    starts: dict[str, set[int]] = {}
    deadline = time.monotonic() + START_TIMEOUT_S
    with (
        httpx.Client(trust_env=False, timeout=5.0, verify=PLAIN_HTTP) as http,
        ControlClient.of(settings) as control,
    ):
        waiting = _questions(settings, http, control)
        while True:
            for name in [name for name, is_up in waiting.items() if is_up()]:
                progress(f"{name} answers")
                del waiting[name]
            if not waiting:
                return
            for process in Supervisor(settings).processes():
                starts.setdefault(process.name, set()).add(process.started_at)
            failing = [
                name for name in waiting if len(starts.get(name, ())) > _STARTS_BEFORE_GIVING_UP
            ]
            if failing or time.monotonic() > deadline:
                raise StackError(_told_by_log(settings, (failing or list(waiting))[0]))
            time.sleep(_POLL_S)


def _wait_until_restored(settings: Settings, progress: Progress) -> None:
    """A version that cannot be loaded again does not keep the others from serving.

    Raises:
        StackUnwell: something is not well that waiting does not mend.
    """
    deadline = time.monotonic() + RESTORE_TIMEOUT_S
    with ControlClient.of(settings) as control:
        before = ""
        while troubles := _troubles(control):
            now = "; ".join(trouble.message for trouble in troubles)
            if not any(trouble.passing for trouble in troubles):
                raise StackUnwell(f"the stack is up, but not well: {now}")
            if now != before:
                progress(now)
            before = now
            if time.monotonic() > deadline:
                progress("going on without: `vlserve status` and `vlserve history` tell more")
                return
            time.sleep(_POLL_S)


def _troubles(control: ControlClient) -> Sequence[TroubleView]:
    try:
        return control.health().troubles
    except (ControlError, StackError) as error:  # it may be being started anew
        return [TroubleView(check="control", message=str(error), passing=True)]


def _questions(
    settings: Settings, http: httpx.Client, control: ControlClient
) -> dict[str, Callable[[], bool]]:
    """For each program, whether it is up."""
    urls = {"gateway": f"{settings.gateway_url}/health"} | {
        endpoint.name: f"http://{endpoint.host}:{endpoint.metrics_port}/metrics"
        for endpoint in endpoints(settings)
    }
    return {"control": lambda: _knows_us(control)} | {
        name: partial(_answers, http, url) for name, url in urls.items()
    }


def _knows_us(control: ControlClient) -> bool:
    """Return whether the service answers, and takes the key of this stack."""
    try:
        control.health()
    except (ControlError, StackError):
        return False
    return True


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _told_by_log(settings: Settings, name: str) -> str:
    log = settings.state_dir / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines() if log.exists() else []
    return f"{name} does not start; the end of {log}:\n" + "\n".join(lines[-20:])


def _refuse_other_settings(settings: Settings) -> None:
    """Settings take effect at a start: a stack that runs with others must not look like this."""
    changed = differing(settings, settings_of_running(settings))
    if changed:
        raise StackError(
            f"the stack runs with other settings of {', '.join(changed)}: "
            "`vlserve down`, then `vlserve up`"
        )


def processes(settings: Settings) -> list[psutil.Process]:
    """Every living process of this stack but this one."""
    members = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(STACK_VARIABLE) == str(settings.state_dir)
            living = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if ours and living and process.pid != os.getpid():
            members.append(process)
    return members


def _stop_processes(settings: Settings, progress: Progress) -> bool:
    """Whether there was any."""
    orphans = processes(settings)
    if not orphans:
        return False
    _drain(settings, progress)
    progress(f"stopping {len(orphans)} processes that nothing supervises")
    for process in orphans:
        _signal(process.terminate)
    _wait_until_gone(settings, 5.0)
    for process in processes(settings):
        _signal(process.kill)
    if not _wait_until_gone(settings, 5.0):
        names = ", ".join(f"{process.name()} ({process.pid})" for process in processes(settings))
        raise StackError(f"these processes of the stack do not stop: {names}")
    return True


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _wait_until_gone(
    settings: Settings, timeout_s: float, meanwhile: Callable[[], object] = lambda: None
) -> bool:
    deadline = time.monotonic() + timeout_s
    while processes(settings):
        if time.monotonic() > deadline:
            return False
        meanwhile()
        time.sleep(_POLL_S)
    return True


@contextmanager
def _one_at_a_time(settings: Settings, progress: Progress) -> Iterator[None]:
    """Two `vlserve up` at once start one stack. StackError names one that does not end."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    deadline, before = time.monotonic() + LOCK_TIMEOUT_S, ""
    file = settings.state_dir / "stack.lock"
    with open_lock(file) as lock:
        while not try_lock(lock):
            other = holder_of(file)
            if time.monotonic() > deadline:
                raise StackError(f"{other} holds {file} and does not end: end it, and try again")
            if other != before:
                progress(f"waiting for {other}, which holds {file}")
            before = other
            time.sleep(_POLL_S)
        yield
