"""A real tritonserver on free loopback ports, started as a stack starts it, with archives."""

import configparser
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from supervisor.datatypes import dict_of_key_value_pairs

from support.running_stack import make_settings, wait_until
from vlserve.control.domain import Instance, Reply
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.triton_instance import TritonInstance
from vlserve.settings import Settings
from vlserve.stack import supervisord
from vlserve.stack.triton_program import why_no_wheel_fits

START_S = 120.0


@dataclass(frozen=True)
class RunningTriton:
    """``pid``: of the server; stubs are its children."""

    pid: int
    _engine: TritonInstance

    def instance(self) -> Instance:
        return self._engine.instance()

    @contextmanager
    def serving(self, archive: Path) -> Iterator[None]:
        """Serve one more archive while the body runs."""
        model, _, version = archive.stem.rpartition("-")
        self._engine.load(model, int(version), archive, None)
        try:
            yield
        finally:
            self._engine.remove(model, int(version))


def need_triton() -> None:
    """Skip the test where no wheel of Triton fits the machine; elsewhere it must run."""
    if reason := why_no_wheel_fits():
        pytest.skip(reason)


@contextmanager
def running_triton(
    folder: Path, archives: Sequence[Path], workers: int = 1
) -> Iterator[RunningTriton]:
    """Serve ``archives`` until the body ends."""
    base_settings = make_settings(folder, "triton")
    engine = base_settings.engine.model_copy(update={"workers": workers})
    settings = base_settings.model_copy(update={"engine": engine})
    (endpoint,) = endpoints(settings)
    with (
        _server(settings) as process,
        httpx.Client(trust_env=False) as http,
        closing(TritonInstance(endpoint, engine, http)) as instance,
        ExitStack() as cleanup,
    ):

        def listens() -> bool:
            assert process.poll() is None, _log(settings).read_text(encoding="utf-8")
            return endpoint.key_file.is_file() and instance.listens(1.0) is Reply.ANSWERED

        wait_until(listens, START_S)
        server = RunningTriton(process.pid, instance)
        for archive in archives:
            cleanup.enter_context(server.serving(archive))
        yield server


@contextmanager
def _server(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """The program that supervisord would run, with its environment."""
    conf = configparser.RawConfigParser()
    conf.read(supervisord.write_configuration(settings, Path("unused")), encoding="utf-8")
    program = conf["program:engine-0"]
    variables = dict_of_key_value_pairs(program["environment"])
    _log(settings).parent.mkdir(parents=True, exist_ok=True)
    with _log(settings).open("wb") as log:
        process = subprocess.Popen(
            shlex.split(program["command"]),
            env=supervisord.environment(settings) | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for segment in Path("/dev/shm").glob(f"{variables['SHM_PREFIX']}*"):
            segment.unlink(missing_ok=True)
        shutil.rmtree(settings.socket_dir, ignore_errors=True)


def _log(settings: Settings) -> Path:
    return settings.state_dir / "logs" / "triton.log"
