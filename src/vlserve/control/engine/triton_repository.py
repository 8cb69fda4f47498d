"""What Triton reads of a version: its configuration and its model.py, and the unpacked archive.

Triton's own code is not copied into the archive: model.py is one line that names the installed
worker, which runs the archive's frozen code, so that every archive serves on Triton too.
"""

import json
import py_compile
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vlserve.control.domain import Key
from vlserve.control.engine.endpoints import Endpoint
from vlserve.control.engine.triton_workers import group_name
from vlserve.runtime.archive import unpack_archive
from vlserve.settings_sections import EngineSettings
from vlserve_worker.busy_workers import BUSY_FILE
from vlserve_worker.crash_notes import notes_folder

REPOSITORY = "repository"
"""Folder of the instance that tritonserver is started with."""
_MODEL = "from vlserve_worker.triton_model import TritonPythonModel  # noqa: F401\n"
_CODE_VERSION = "1"
"""Of Triton's own versions; each of ours is a model of its own, so that none restarts another's
workers."""


@dataclass(frozen=True)
class WrittenVersion:
    """How a version is written: what is needed to write it again with other workers."""

    workers: int
    """As many as it is to have."""
    batch_size: int
    queue_size: int
    parameters: dict[str, str]
    numbers: tuple[int, ...] = ()
    """Of the workers that it has: each alone in an instance group, which Triton starts or ends."""
    drawn: int = 0
    """The highest number that was ever given: the next worker gets the one above it."""

    def with_numbers(self, numbers: Iterable[int]) -> "WrittenVersion":
        """Return it with these of its workers alone."""
        return replace(self, numbers=tuple(numbers))

    def filled_up(self) -> "WrittenVersion":
        """Return it with new workers beside those that it has, up to as many as it is to have."""
        last = self.drawn + max(0, self.workers - len(self.numbers))
        new = range(self.drawn + 1, last + 1)
        return replace(self, numbers=(*self.numbers, *new), drawn=last)


def triton_name(model: str, version: int) -> str:
    """Return the name of a version's Triton model."""
    return f"{model}-{version}"


def key_of(name: str) -> Key | None:
    """Return the version that a Triton model is; None for a name that is no version's."""
    model, _, version = name.rpartition("-")
    return (model, int(version)) if model and version.isdecimal() else None


class TritonRepository:
    """The model repository of one instance."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._folder = endpoint.folder / REPOSITORY

    def code_folder(self, model: str, version: int) -> Path:
        """Return the folder that the command line of this version's workers names."""
        return self._folder / triton_name(model, version) / _CODE_VERSION

    def write(self, model: str, version: int, archive: Path, settings: EngineSettings) -> None:
        """Unpack ``archive``, and write what Triton loads.

        Raises:
            ArchiveError: it is not what was packed.
        """
        archive_dir = self._unpacked(model, version)
        shutil.rmtree(archive_dir, ignore_errors=True)
        unpack_archive(archive, archive_dir)
        state_dir = self._endpoint.folder.parent
        parameters = {
            "archive_dir": str(archive_dir),
            "model": model,
            "version": str(version),
            "threads": str(settings.threads),
            "device": settings.device,
            "lone_threads": str(settings.lone_threads),
            "busy_file": str(state_dir / BUSY_FILE),
            "load_timeout_s": f"{settings.load_timeout_s:g}",
            "response_timeout_s": str(settings.response_timeout_s),
            "max_body_bytes": str(self._endpoint.max_body_bytes),
            "memory_mib": str(settings.worker_memory_mib),
            "notes_dir": str(notes_folder(state_dir, model, version)),
            "capture_dir": str(state_dir / "capture" / model),
            "answer_log": str(state_dir / "logs" / "answers.jsonl"),
        }
        record = WrittenVersion(
            settings.workers, settings.batch_size, settings.queue_size, parameters
        )
        code = self.code_folder(model, version)
        code.mkdir(parents=True, exist_ok=True)
        (code / "model.py").write_text(_MODEL, encoding="utf-8")
        # Python would write it at the first load: a change, for which the next load would start
        # all workers of the version anew.
        py_compile.compile(
            str(code / "model.py"), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        self.put(model, version, record.filled_up())

    def read(self, model: str, version: int) -> WrittenVersion | None:
        """Return how a version was written; None where it is not."""
        try:
            record = self._record(model, version).read_text(encoding="utf-8")
            fields = json.loads(record)
            return WrittenVersion(**{**fields, "numbers": tuple(fields["numbers"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, model: str, version: int, record: WrittenVersion) -> None:
        """Write what the next load makes Triton take."""
        name = triton_name(model, version)
        _replace(self._folder / name / "config.pbtxt", configuration_text(name, record))
        _replace(self._record(model, version), json.dumps(vars(record)))

    def remove(self, model: str, version: int) -> None:
        """Take away all that was written of a version."""
        shutil.rmtree(self._folder / triton_name(model, version), ignore_errors=True)
        shutil.rmtree(self._unpacked(model, version), ignore_errors=True)
        self._record(model, version).unlink(missing_ok=True)

    def _unpacked(self, model: str, version: int) -> Path:
        return self._endpoint.store / triton_name(model, version)

    def _record(self, model: str, version: int) -> Path:
        return self._endpoint.store / f"{triton_name(model, version)}.json"


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all: a tick may read it meanwhile, and a full disk must not
    leave half of one."""
    draft = file.with_name(f".{file.name}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def configuration_text(name: str, record: WrittenVersion) -> str:
    """Return the config.pbtxt of a version: whole bodies in, whole answers out, and batches of
    what has gathered while the last one ran, without a wait. The groups differ by a priority that
    has no effect (--rate-limit is off): Triton compares all of a group but its name."""
    kind = "KIND_GPU" if record.parameters.get("device") == "cuda" else "KIND_CPU"
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "python"',
        f"max_batch_size: {record.batch_size}",
        'input [{ name: "body" data_type: TYPE_UINT8 dims: [-1] allow_ragged_batch: true }]',
        'output [{ name: "answer" data_type: TYPE_UINT8 dims: [-1] }]',
        *(
            f'instance_group {{ name: "{group_name(number)}" kind: {kind} count: 1 '
            f"rate_limiter {{ priority: {number} }} }}"
            for number in record.numbers
        ),
        "dynamic_batching { max_queue_delay_microseconds: 0 "
        f"default_queue_policy {{ max_queue_size: {record.queue_size} }} }}",
        *(
            f"parameters {{ key: {json.dumps(key)} "
            f"value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}"
            for key, value in record.parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"
