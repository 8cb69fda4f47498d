"""What docker-compose.yml's services run besides the servers themselves:

    python -m vlserve.stack.containers render     write what the gateway and the engine start from
    python -m vlserve.stack.containers rebuild    `vlserve up --rebuild-ledger`, without the start
    python -m vlserve.stack.containers drain      the gateway answers what it holds, then it may end
    python -m vlserve.stack.containers engine     health of the engine: each version predicts
    python -m vlserve.stack.containers gateway    health through the gateway: each model predicts

A health check makes real predictions, the ones that the archives carry with their answers, and ends
with exit code 1 when one is wrong or missing. Where nothing is loaded or released there is nothing
to ask: it says so, and ends with 0.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import httpx

from vlserve.control.client import ControlClient
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.control.engine.instance import json_of
from vlserve.control.lifecycle.probes import differences, different_exchange, failed_probes
from vlserve.control.lifecycle.rebuilding import rebuild_ledger
from vlserve.control.wire.views import ModelView
from vlserve.errors import ArchiveError, VlserveError
from vlserve.runtime.archive import manifest_of
from vlserve.runtime.exchange import ExchangeFields, RawAnswer, answer_of
from vlserve.runtime.headers import API_KEY, REQUEST_ID
from vlserve.runtime.manifest import Manifest, Probe
from vlserve.settings import Settings, load_settings
from vlserve.tls import trust_of
from vlserve_worker.own_ids import probe_id

OPEN_S = 5.0
"""How long new connections are taken after the word to end, at the most: who sends requests, as a
balancer does, may hear of it late."""


def render(settings: Settings) -> list[str]:
    """Write the configurations that `vlserve up` writes before it starts the servers."""
    from vlserve.control.gateway.envoy import EnvoyGateway
    from vlserve.control.open_door import refuse_open_door
    from vlserve.stack import supervisord
    from vlserve.stack.envoy_binary import verified_envoy_path
    from vlserve.stack.folders import refuse_store_in_state
    from vlserve.stack.ports import refuse_equal_ports

    verified_envoy_path()
    settings.model_store.mkdir(parents=True, exist_ok=True)
    (settings.state_dir / "logs").mkdir(parents=True, exist_ok=True)
    refuse_equal_ports(settings)
    refuse_store_in_state(settings)
    refuse_open_door(settings)
    bootstrap = EnvoyGateway(settings).prepare()
    supervisord.write_engines(settings)
    return [f"written: {bootstrap}, {', '.join(str(e.folder) for e in endpoints(settings))}"]


def drain(settings: Settings) -> bool:
    """Have the gateway take no new connections after `OPEN_S`, and wait for its running requests;
    return whether none was left."""
    from vlserve.control.gateway.envoy import EnvoyGateway

    with closing(EnvoyGateway(settings)) as gateway:
        return gateway.drain(settings.gateway.timeout_s, open_s=OPEN_S)


def engine_failures(settings: Settings) -> tuple[list[str], list[str]]:
    """(questions, failures): each loaded version of each instance answers its first probe right."""
    engine = EngineGroup(endpoints(settings), settings.engine)
    questions: list[str] = []
    failures: list[str] = []
    try:
        versions = engine.loaded()
        for instance in engine.instances():
            for model, version in versions.get(instance.name, {}):
                questions.append(f"{model} {version} on {instance.name}")
                try:
                    manifest = _manifest(settings, model, version)
                except ArchiveError as error:
                    failures.append(str(error))
                    continue
                failures += failed_probes(engine, [instance], manifest, manifest.probes[:1])
    finally:
        engine.close()
    return questions, failures


def gateway_failures(settings: Settings) -> tuple[list[str], list[str]]:
    """(questions, failures): each released model's stable version answers its first probe right,
    asked as clients ask."""
    with ControlClient.of(settings) as control:
        models = [model for model in control.models() if model.stable is not None]
    failures = [failure for model in models for failure in _ask_stable(settings, model)]
    return [f"{model.model} {model.stable} through the gateway" for model in models], failures


def _ask_stable(settings: Settings, model: ModelView) -> list[str]:
    assert model.stable is not None
    try:
        manifest = _manifest(settings, model.model, model.stable)
    except ArchiveError as error:
        return [str(error)]
    url = f"{settings.gateway_url}/predictions/{model.model}/{model.stable}"
    probe = manifest.probes[0]
    try:
        if manifest.adopted:
            wrong = _wrong_exchange(settings, url, probe)
        else:
            answered_by = {"model": model.model, "version": model.stable}
            wrong = _wrong_answer(settings, url, probe, answered_by)
    except httpx.RequestError as error:
        return [f"{url} does not answer: {error or type(error).__name__}"]
    return [f"{url}{fault}" for fault in wrong]


def _wrong_answer(
    settings: Settings, url: str, probe: Probe, answered_by: Mapping[str, object]
) -> list[str]:
    response = _post(settings, url, json=probe.fields)
    answer = json_of(response)
    if response.is_error or not isinstance(answer, dict):
        return [f" answered {response.status_code}: {response.text.strip()[:300]}"]
    faults = differences({**probe.answer, **answered_by}, answer)
    return [f": {fault}" for fault in faults]


def _wrong_exchange(settings: Settings, url: str, probe: Probe) -> list[str]:
    """Ask an adopted archive, whose probe is a client's whole request, and its answer too."""
    fields = ExchangeFields.model_validate(probe.fields)
    response = _post(settings, url, content=fields.content, headers=fields.headers)
    own = {name: response.headers.get(name, "") for name in probe.answer["headers"]}
    answer = answer_of(RawAnswer(response.status_code, own, response.content))
    return [f": {fault}" for fault in different_exchange(probe.answer, answer)]


def _post(
    settings: Settings, url: str, headers: Mapping[str, str] | None = None, **body: Any
) -> httpx.Response:
    keys = settings.gateway.api_keys
    own = {REQUEST_ID: probe_id()} | ({API_KEY: keys[0]} if keys else {})
    return httpx.post(
        url,
        headers=dict(headers or {}) | own,
        timeout=settings.gateway.timeout_s + 5,
        trust_env=False,
        verify=trust_of(settings.gateway_tls),
        **body,
    )


def _manifest(settings: Settings, model: str, version: int) -> Manifest:
    return manifest_of(settings.model_store / model / str(version) / f"{model}-{version}.mar")


def _check(questions: Sequence[str], failures: Sequence[str]) -> int:
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    if not questions:
        print("up; nothing is loaded or released, so nothing was predicted")
    elif not failures:
        print(f"predicted right: {', '.join(questions)}")
    return 1 if failures else 0


def main(words: Sequence[str]) -> int:
    try:
        settings = load_settings()
        match words:
            case ["render"]:
                print("\n".join(render(settings)))
                return 0
            case ["rebuild"]:
                for line in rebuild_ledger(settings):
                    print(line)
                return 0
            case ["drain"]:
                return 0 if drain(settings) else 1
            case ["engine"]:
                return _check(*engine_failures(settings))
            case ["gateway"]:
                return _check(*gateway_failures(settings))
    except (VlserveError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
