"""How one version is served, as `vlserve tune` found it: a file beside the archive, which
`vlserve register` sends along and the ledger keeps."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from vlserve.errors import TuningInvalid
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.errors import wrong_fields
from vlserve.runtime.manifest import Sha256
from vlserve.settings_sections import EngineSettings
from vlserve.strict_numbers import StrictNumbers


class Serving(StrictNumbers):
    """What may differ from version to version of what EngineSettings says for all."""

    workers: int = Field(ge=1, le=256)
    threads: int = Field(ge=1, le=256, description="Of each worker.")
    batch_size: int = Field(ge=1, le=1024)
    max_batch_delay_ms: int = Field(
        ge=0, le=10_000, description="0: a batch waits for nothing, as on Triton alone."
    )

    def __str__(self) -> str:
        return (
            f"{self.workers} x {self.threads}, batch {self.batch_size}, "
            f"{self.max_batch_delay_ms} ms"
        )


class Measured(StrictNumbers):
    """Of closed-loop callers at the gateway."""

    connections: int
    rps: float
    p50_ms: float
    p99_ms: float


class Tuning(StrictNumbers):
    """``<archive>.tuning.json``. Files of before 0.1.0 have no number; they are schema 1.

    Where a caller chose the settings by hand, nothing was measured.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    schema_number: Literal[1] = Field(default=1, alias="schema", description="Of these fields.")
    archive_sha256: Sha256
    serving: Serving
    slo_p99_ms: float | None = None
    measured: Measured | None = None
    machine: str = ""
    tuned_at: str = Field(description="UTC, ISO 8601.")


def of_engine(settings: EngineSettings) -> Serving:
    """Return what a version gets that was not tuned."""
    serving = Serving.model_validate(settings, from_attributes=True)
    if settings.kind == "triton":
        return serving.model_copy(update={"max_batch_delay_ms": 0})
    return serving


def tuned(settings: EngineSettings, serving: Serving | None) -> EngineSettings:
    """Return the engine's settings for a version that is served so."""
    return settings if serving is None else settings.model_copy(update=serving.model_dump())


def tuning_file(archive: Path) -> Path:
    """Return the file that `vlserve tune` writes, and `vlserve register` looks."""
    return archive.with_name(f"{archive.stem}.tuning.json")


def read_tuning(archive: Path) -> Tuning | None:
    """Read what lies beside ``archive``; None where nothing does. TuningInvalid when it cannot be
    read, or was made of other bytes."""
    file = tuning_file(archive)
    if not file.is_file():
        return None
    tuning = parse_tuning(file.read_bytes(), file.name)
    check_tuning(tuning, file_sha256(archive), file.name)
    return tuning


def parse_tuning(raw: bytes | str, what: str = "tuning") -> Tuning:
    """Parse a tuning. TuningInvalid names each wrong field."""
    try:
        return Tuning.model_validate_json(raw)
    except ValidationError as error:
        raise TuningInvalid(f"{what}: {wrong_fields(error, 'file')}") from error


def check_tuning(tuning: Tuning, sha256: str, what: str = "tuning") -> None:
    """Raise TuningInvalid unless it is of the archive with these bytes."""
    if tuning.archive_sha256 != sha256:
        raise TuningInvalid(
            f"{what} was made for another archive (sha256 {tuning.archive_sha256[:12]}…, this one "
            f"has {sha256[:12]}…): run `vlserve tune` again, or remove it"
        )
