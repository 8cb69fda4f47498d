"""model-config.yaml of an archive: workers, batches, and what vlserve has no like of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlserve.errors import NotAdopted

MAX_BYTES = 1024**2
STREAMS = "streams tokens with asynchronous workers, which vlserve does not run"
SEQUENCES = "needs all requests of a sequence at one worker, which vlserve does not promise"
_REFUSED = {
    "asyncCommunication": STREAMS,
    "continuousBatching": STREAMS,
    "sequenceBatching": SEQUENCES,
}
_PROCESSES = ("torchrun", "parallelType", "deepspeed", "pippy")
_READ = (
    *("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout"),
    "startupTimeout",
)
_DROPPED = {"jobQueueSize": "engine.queue_size is the length of every version's queue"}
"""What is TorchServe's of one model, and here of all, or nothing: why."""
_OTHERS = (
    *("deviceType", "deviceIds", "parallelLevel", "handler"),
    *("pt2", "micro_batching", "useJobTicket", "rateLimit", "maxRetryTimeoutInSec", "dali"),
    *("clientTimeoutInMills", "maxSequenceJobQueueSize", "sequenceMaxIdleMSec", "maxNumSequence"),
)
_KNOWN = (*_READ, *_DROPPED, *_OTHERS, *_REFUSED, *_PROCESSES)


@dataclass(frozen=True)
class ModelConfig:
    """Numbers that a version is served by; None where the file does not say."""

    workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    misspelt: tuple[tuple[str, str], ...] = ()
    """Entries that TorchServe passes over, with how it writes them."""
    dropped: tuple[tuple[str, str], ...] = ()
    """Entries that are not taken, and why."""


def read_model_config(file: Path, archive_name: str) -> ModelConfig:
    """Read it. NotAdopted for what cannot be read, or needs what vlserve does not do."""
    content = _content(file, archive_name)
    for name, why in _REFUSED.items():
        if content.get(name):
            raise NotAdopted(f"{archive_name} {why} ({name})")
    for name in _PROCESSES:
        if content.get(name):
            raise NotAdopted(
                f"{archive_name} starts {_processes(content)} processes a worker ({name})"
            )
    return from_entries(content, tuple(_misspelt(content)))


def from_entries(
    content: Mapping[str, Any], misspelt: tuple[tuple[str, str], ...] = ()
) -> ModelConfig:
    """Return the numbers of entries in TorchServe's names."""
    return ModelConfig(
        _number(content, "minWorkers") or _number(content, "maxWorkers"),
        _number(content, "batchSize"),
        _number(content, "maxBatchDelay"),
        _number(content, "responseTimeout"),
        _number(content, "startupTimeout"),
        misspelt,
        tuple(
            (f"{name} {content[name]}", why) for name, why in _DROPPED.items() if content.get(name)
        ),
    )


def _content(file: Path, archive_name: str) -> Mapping[str, Any]:
    """Read what TorchServe reads: entries that are there twice too, which `yaml_files` refuses."""
    if not file.is_file():
        raise NotAdopted(
            f"{archive_name} names the configuration {file.name}, which it does not hold"
        )
    if file.stat().st_size > MAX_BYTES:
        raise NotAdopted(f"{archive_name}: {file.name} has more than {MAX_BYTES} bytes")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise NotAdopted(f"{archive_name}: {file.name} cannot be read: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise NotAdopted(f"{archive_name}: {file.name} is no list of entries")
    return {str(name): value for name, value in (content or {}).items()}


def _number(content: Mapping[str, Any], name: str) -> int | None:
    value = content.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _processes(content: Mapping[str, Any]) -> str:
    torchrun = content.get("torchrun")
    number = torchrun.get("nproc-per-node") if isinstance(torchrun, dict) else None
    return str(number) if number else "several"


def _misspelt(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    right = {name.lower().replace("_", ""): name for name in _KNOWN}
    for name in content:
        correction = right.get(name.lower().replace("_", "").replace("-", ""))
        if correction and correction != name:
            yield name, correction
