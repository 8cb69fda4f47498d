"""Whether a loaded version answers the requests in its archive as it did when it was packed."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any

from vlserve.control.domain import Instance
from vlserve.control.ports import Engine
from vlserve.errors import ControlError, EngineBusy, EngineUnavailable, LoadFailed
from vlserve.runtime.manifest import Manifest, Probe
from vlserve.runtime.task import difference

_MAX_SHOWN = 200
_FIRST_ANSWER_S = 5.0
_OTHER_ANSWERS_S = 1.0
LAST_DIGITS = 1e-6
"""By how much a fraction in a raw answer may differ: of its size, or, below one, in all."""
_JSON_TOKENS = re.compile(r'("(?:[^"\\]|\\.)*+"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
_FRACTION = re.compile(r"-?\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)")


def failed_probes(
    engine: Engine,
    instances: Sequence[Instance],
    manifest: Manifest,
    probes: Sequence[Probe],
    *,
    just_loaded: bool = False,
) -> list[str]:
    """Ask each instance for each probe on the version's own path; return a line per wrong answer.

    It stops at the first answer that does not come: what hangs would take as long each time.
    """
    failures: list[str] = []
    for instance in instances:
        for number, probe in enumerate(probes, start=1):
            try:
                faults = _wrong(engine, instance, manifest, probe, just_loaded)
            except ControlError as error:
                return [*failures, f"probe {number}: {error}"]
            failures += [f"probe {number} on {instance.name}: {each}" for each in faults]
    return failures


def refuse_wrong_answers(engine: Engine, instances: Sequence[Instance], manifest: Manifest) -> None:
    """Ask each instance that has just loaded a version for all of its probes.

    Raises:
        LoadFailed: It does not answer as it did when it was packed.
    """
    wrong = failed_probes(engine, instances, manifest, manifest.probes, just_loaded=True)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise LoadFailed(
            f"{manifest.model} {manifest.version} loads, but does not answer as it did when it was "
            f"packed: {'; '.join(wrong[:3])}{more}"
        )


def _wrong(
    engine: Engine,
    instance: Instance,
    manifest: Manifest,
    probe: Probe,
    just_loaded: bool = False,
) -> list[str]:
    answer = engine.predict(
        instance, manifest.model, manifest.version, probe.fields, just_loaded=just_loaded
    )
    expected = {**probe.answer, "model": manifest.model, "version": manifest.version}
    if manifest.adopted:
        return different_exchange(expected, answer)
    return differences(expected, answer)


def serves_somewhere(engine: Engine, instances: Sequence[Instance], manifest: Manifest) -> bool:
    """Return whether an instance answers the first probe right, and none answers it wrong.

    All are asked at once, and the right answer of one is enough where another says nothing: what
    hangs must not keep a version from being gone back to. It gets the version's requests all the
    same once it answers again; until then the gateway asks another instance.
    """
    if not instances:
        return False
    pool = ThreadPoolExecutor(len(instances), thread_name_prefix="probe")
    futures = [pool.submit(_is_right, engine, instance, manifest) for instance in instances]
    pool.shutdown(wait=False)
    try:
        if not any(answer.result() for answer in as_completed(futures, _FIRST_ANSWER_S)):
            return False
    except TimeoutError:
        return False
    in_time, _ = wait(futures, _OTHER_ANSWERS_S)
    return all(answer.result() is not False for answer in in_time)


def first_answer(engine: Engine, instance: Instance, manifest: Manifest) -> str | None:
    """Return why the instance's answer to the first probe is not right; empty where it is, and None
    where the instance is too busy to say."""
    try:
        return "; ".join(_wrong(engine, instance, manifest, manifest.probes[0]))
    except EngineBusy:
        return None
    except ControlError as error:
        return str(error)


def _is_right(engine: Engine, instance: Instance, manifest: Manifest) -> bool | None:
    """Return whether the instance answers the first probe right; None where no answer comes."""
    try:
        return not any(_wrong(engine, instance, manifest, probe) for probe in manifest.probes[:1])
    except EngineUnavailable:
        return None
    except ControlError:
        return False


def differences(expected: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Return the first difference of each expected field; other fields are not compared.

    Numbers may differ by 1e-3. Entries of a list of objects may come in another order, as scores
    that tie do: an archive's own task is not asked, because its code does not run in this process.
    """
    faults = []
    for name, value in expected.items():
        if name not in answer:
            faults.append(f"the answer has no {name}")
            continue
        different = difference(value, answer[name], name)
        if different and not _same_entries(value, answer[name]):
            faults.append(different)
    return faults


def different_exchange(expected: Mapping[str, Any], exchange: Mapping[str, Any]) -> list[str]:
    """Return what differs of a raw exchange: status, headers that the handler set, and the body
    byte for byte, but for the last digits of fractions in JSON."""
    text, reply = expected.get("text"), exchange.get("text")
    if isinstance(text, str) and isinstance(reply, str) and _same_json(text, reply):
        exchange = {**exchange, "text": text}
    pairs = {name: (value, exchange.get(name)) for name, value in expected.items()}
    return [
        f"{name} is {shown(answer)}, expected {shown(value)}"
        for name, (value, answer) in pairs.items()
        if value != answer
    ]


def _same_json(expected: str, answer: str) -> bool:
    """Return whether two texts are one JSON, letter by letter but for the last digits of fractions:
    float32 has seven digits, and processors add in another order, each with its own last one."""
    try:
        json.loads(expected)
    except (ValueError, RecursionError):
        return expected == answer
    ours, theirs = _JSON_TOKENS.split(expected), _JSON_TOKENS.split(answer)
    return len(ours) == len(theirs) and all(map(_same_token, ours, theirs))


def _same_token(token: str, other: str) -> bool:
    if token == other:
        return True
    if not (_FRACTION.fullmatch(token) and _FRACTION.fullmatch(other)):
        return False
    return math.isclose(float(token), float(other), rel_tol=LAST_DIGITS, abs_tol=LAST_DIGITS)


def shown(value: Any) -> str:
    """Return what a message shows of a value, which may be a whole body."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _same_entries(expected: Any, answer: Any) -> bool:
    if not (isinstance(expected, list) and isinstance(answer, list)):
        return False
    rest = list(answer)
    for entry in expected:
        if not isinstance(entry, Mapping):
            return False
        match = next((other for other in rest if difference(entry, other) is None), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest
