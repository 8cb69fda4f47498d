"""The servers of a stack at their start: which engine runs here, and whether each answers."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import httpx

from vlserve.control.engine.endpoints import endpoints
from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.stack.triton_program import why_triton_cannot_run
from vlserve.supervisor import Supervisor
from vlserve.tls import trust_of

Progress = Callable[[str], None]

START_TIMEOUT_S = 90.0
_ANSWER_TIMEOUT_S = 5.0
_POLL_S = 0.1
_STARTS_BEFORE_GIVING_UP = 3


def with_engine_that_runs(settings: Settings, progress: Progress) -> Settings:
    """Return the settings, on TorchServe where Triton is asked for and cannot run here."""
    if settings.engine.kind == "torchserve" or (reason := why_triton_cannot_run()) is None:
        return settings
    progress(f"Triton cannot run here: {reason}; TorchServe takes its place")
    return settings.model_copy(update={"engine": settings.engine.on("torchserve")})


def asking(settings: Settings) -> httpx.Client:
    """Return a client for `questions`; a context manager."""
    trust = trust_of(settings.gateway_tls)
    return httpx.Client(trust_env=False, timeout=_ANSWER_TIMEOUT_S, verify=trust)


def questions(settings: Settings, http: httpx.Client) -> dict[str, Callable[[], bool]]:
    """Return for the gateway and each engine instance what says whether it is up."""
    urls = {"gateway": f"{settings.gateway_url}/health"} | {
        endpoint.name: f"http://{endpoint.host}:{endpoint.metrics_port}/metrics"
        for endpoint in endpoints(settings)
    }
    return {name: partial(_answers, http, url) for name, url in urls.items()}


def wait_until_answering(
    settings: Settings, questions: Mapping[str, Callable[[], bool]], progress: Progress
) -> None:
    """Return once each program answers its question.

    Raises:
        StackError: One does not in time, or ends again and again; with the end of its log.
    """
    rest = dict(questions)
    starts: dict[str, set[int]] = {}
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        for name in [name for name, is_up in rest.items() if is_up()]:
            progress(f"{name} answers")
            del rest[name]
        if not rest:
            return
        for process in Supervisor(settings).processes():
            starts.setdefault(process.name, set()).add(process.started_at)
        failures = [name for name in rest if len(starts.get(name, ())) > _STARTS_BEFORE_GIVING_UP]
        if failures or time.monotonic() > deadline:
            raise StackError(_told_by_log(settings, (failures or list(rest))[0]))
        time.sleep(_POLL_S)


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _told_by_log(settings: Settings, name: str) -> str:
    log = settings.state_dir / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines() if log.exists() else []
    return f"{name} does not start; the end of {log}:\n" + "\n".join(lines[-20:])
