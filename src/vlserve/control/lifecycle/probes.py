"""Whether a loaded version answers the requests in its archive as it did when it was packed."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlserve.control.domain import Instance
from vlserve.control.ports import Engine
from vlserve.errors import ControlError
from vlserve.runtime.manifest import Manifest, Probe
from vlserve.runtime.task import difference


def failed_probes(
    engine: Engine, instances: Sequence[Instance], manifest: Manifest, probes: Sequence[Probe]
) -> list[str]:
    """Ask each instance for each probe on the version's own path; return a line per wrong answer.

    It stops at the first answer that does not come: what hangs would take as long each time.
    """
    failed: list[str] = []
    for instance in instances:
        for number, probe in enumerate(probes, start=1):
            try:
                got = engine.predict(instance, manifest.model, manifest.version, probe.fields)
            except ControlError as error:
                return [*failed, f"probe {number}: {error}"]
            expected = {**probe.answer, "model": manifest.model, "version": manifest.version}
            failed += [
                f"probe {number} on {instance.name}: {d}" for d in differences(expected, got)
            ]
    return failed


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Return the first difference of each expected field; other fields are not compared.

    Numbers may differ by 1e-3. Entries of a list of objects may come in another order, as scores
    that tie do: an archive's own task is not asked, because its code does not run in this process.
    """
    found = []
    for name, value in expected.items():
        if name not in got:
            found.append(f"the answer has no {name}")
            continue
        different = difference(value, got[name], name)
        if different and not _same_entries(value, got[name]):
            found.append(different)
    return found


def _same_entries(expected: Any, got: Any) -> bool:
    if not (isinstance(expected, list) and isinstance(got, list)):
        return False
    rest = list(got)
    for entry in expected:
        if not isinstance(entry, Mapping):
            return False
        match = next((other for other in rest if difference(entry, other) is None), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest
