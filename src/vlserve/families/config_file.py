"""A checkpoint's config.json: parsed, and held against what the tensors show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.json_file import read_json
from vlserve.exporter.wordpiece import VOCABULARY, read_vocabulary
from vlserve.runtime.errors import wrong_fields

AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


def parse_config(kind: type[AnyConfig], config: Mapping[str, Any], family: str) -> AnyConfig:
    """Raises ExportError that names each field that is missing or wrong."""
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        wrong = wrong_fields(error, "config")
        raise ExportError(f"config.json of a {family} checkpoint: {wrong}") from error


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object in config.json, empty where there is none. ExportError where it is none."""
    said = config.get(name)
    if said is not None and not isinstance(said, Mapping):
        raise ExportError(f"config.json: {name} must be an object, not {repr(said)[:50]}")
    return dict(said or {})


def listed(said: Any, name: str) -> list[Any]:
    """Return a list that config.json has under ``name``. ExportError where it is none."""
    if not isinstance(said, list | tuple):
        raise ExportError(f"config.json: {name} must be a list, not {repr(said)[:50]}")
    return list(said)


def check_said(config: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """CheckpointMismatch where config.json says otherwise than the tensors show."""
    wrong = [
        f"{name}: config.json says {config[name]}, the checkpoint has {value}"
        for name, value in shown.items()
        if name in config and config[name] != value
    ]
    if wrong:
        raise CheckpointMismatch("; ".join(wrong))


def vocabulary_of(config: Mapping[str, Any], folder: Path) -> Any:
    """The tokens that config.json lists, or those of the file in ``folder`` that it names, by
    default a vocab.txt. ExportError where that cannot be read."""
    named = config.get("vocabulary", VOCABULARY)
    return (
        read_vocabulary(folder / named) if isinstance(named, str) else listed(named, "vocabulary")
    )


def check_positions(max_length: int, positions: int) -> None:
    """ValueError where texts could be longer than the network has positions for."""
    if max_length > positions:
        raise ValueError(f"max_length is over the {positions} positions")


def read_names(path: Path, field: str) -> Any:
    """The JSON list of names that ``field`` says is in a file."""
    return read_json(path, f"{field} {path.name}")
