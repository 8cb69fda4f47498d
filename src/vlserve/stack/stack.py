"""up, down, status: every process of one stack, run by supervisord.

Every process carries the stack's state_dir in its environment, so that those whose supervisord was
killed are found again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import httpx
import psutil

from vlserve.control.client import ControlClient
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.lifecycle.rebuilding import rebuild_ledger
from vlserve.control.open_door import refuse_open_door
from vlserve.control.store.kept_archives import engines_in_use, refuse_lost_ledger
from vlserve.control.wire.views import TroubleView
from vlserve.errors import ControlError, StackError, StackUnwell, SupervisorHangs
from vlserve.lock_holders import holder_of, open_lock, try_lock
from vlserve.running_settings import (
    differing,
    keep_settings,
    read_kept,
    settings_of_running,
)
from vlserve.settings import Settings
from vlserve.stack import supervisord
from vlserve.stack.cuda import refuse_missing_cuda
from vlserve.stack.envoy_binary import verified_envoy_path
from vlserve.stack.folders import make_private, refuse_store_in_state
from vlserve.stack.ports import refuse_busy_ports, refuse_equal_ports
from vlserve.stack.starting import (
    Progress,
    asking,
    questions,
    wait_until_answering,
    with_engine_that_runs,
)
from vlserve.stack.stopping import stop, stop_processes
from vlserve.supervisor import Process, Supervisor

RESTORE_TIMEOUT_S = 90.0
LOCK_TIMEOUT_S = 300.0  # an `up` that restores slow models takes less
_HANGS_S = 10.0
_POLL_S = 0.1


def up(settings: Settings, progress: Progress, rebuild: bool = False) -> None:
    """Start every process and wait until each answers and the engine holds again what it held;
    nothing happens to what is up already, but that a drained gateway is opened again.
    PortBusy names who holds a port; StackError shows the log of what did not start. What this
    call started does not stay up when it fails; a stack that was up does. It stays up with
    StackUnwell too, which names what needs help, as a version whose archive is lost.

    Args:
        rebuild: whether to make a lost or damaged ledger anew first: see `rebuild_ledger`.

    Raises:
        SettingsError: two servers would listen on one port, model_store lies in state_dir,
            certificates cannot be used, or the control service would listen beyond loopback and
            nobody has a named key.
        LedgerLost, LedgerDamaged: it must be mended first; nothing was started.
    """
    refuse_equal_ports(settings)
    refuse_store_in_state(settings)
    settings = with_engine_that_runs(_with_engine_of_models(settings, progress), progress)
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
        stop_processes(settings, progress)  # left behind by a supervisord that died or hangs
        refuse_open_door(settings)
        refuse_busy_ports(settings)
        try:
            _start(settings, progress)
            _wait_until_well(settings, progress)
        except StackUnwell:
            raise
        except BaseException:  # Ctrl-C too
            stop(settings, progress)
            raise


def _with_engine_of_models(settings: Settings, progress: Progress) -> Settings:
    """Return the settings with the engine that serves the models already, where nobody chose one:
    a new release of vlserve with another default moves no version."""
    if "kind" in settings.engine.model_fields_set:
        return settings
    last_settings = read_kept(settings.state_dir)
    kinds = set(
        last_settings.engine.kinds if last_settings else engines_in_use(settings.model_store)
    )
    if kinds <= set(settings.engine.kinds):
        return settings
    kind = "both" if len(kinds) > 1 else kinds.pop()
    progress(f"the models are on {kind}, which stays their engine: engine.kind chooses another")
    return settings.model_copy(update={"engine": settings.engine.on(kind)})


def down(settings: Settings, progress: Progress) -> bool:
    """Let running requests finish and stop every process; whether anything was up. StackError
    when a process outlives even SIGKILL."""
    if not settings.state_dir.exists():
        return False
    with _one_at_a_time(settings, progress):
        return stop(settings_of_running(settings), progress)


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


def _reopen_gateway(settings: Settings, progress: Progress) -> None:
    """Restart a gateway that was drained: a `down` that was cut short leaves it so, for good."""
    with closing(EnvoyGateway(settings)) as gateway:
        if gateway.is_drained():
            progress("the gateway was drained and takes no requests: restarting it")
            Supervisor(settings).restart("gateway")


def _mend_what_hangs(settings: Settings, progress: Progress) -> None:
    """Kill what has run for a while and does not answer; supervisord starts it anew."""
    deadline = time.monotonic() + _HANGS_S
    with _clients(settings) as (http, control):
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
    with _clients(settings) as (http, control):
        wait_until_answering(settings, _questions(settings, http, control), progress)
    _wait_until_restored(settings, progress)


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


@contextmanager
def _clients(settings: Settings) -> Iterator[tuple[httpx.Client, ControlClient]]:
    with asking(settings) as http, ControlClient.of(settings) as control:
        yield http, control


def _questions(
    settings: Settings, http: httpx.Client, control: ControlClient
) -> dict[str, Callable[[], bool]]:
    """For each program, whether it is up."""
    return {"control": lambda: _knows_us(control)} | questions(settings, http)


def _troubles(control: ControlClient) -> Sequence[TroubleView]:
    try:
        return control.health().troubles
    except (ControlError, StackError) as error:  # it may be being started anew
        return [TroubleView(check="control", message=str(error), passing=True)]


def _knows_us(control: ControlClient) -> bool:
    """Return whether the service answers, and takes the key of this stack."""
    try:
        control.health()
    except (ControlError, StackError):
        return False
    return True


def _refuse_other_settings(settings: Settings) -> None:
    """Settings take effect at a start: a stack that runs with others must not look like this."""
    names = differing(settings, settings_of_running(settings))
    if names:
        raise StackError(
            f"the stack runs with other settings of {', '.join(names)}: "
            "`vlserve down`, then `vlserve up`"
        )


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
