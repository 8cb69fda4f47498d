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
    """Parse a config.json. ExportError names each field that is missing or wrong."""
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        wrong = wrong_fields(error, "config")
        raise ExportError(f"config.json of a {family} checkpoint: {wrong}") from error


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object in config.json, empty where there is none. ExportError where it is none."""
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ExportError(f"config.json: {name} must be an object, not {repr(value)[:50]}")
    return dict(value or {})


def listed(value: Any, name: str) -> list[Any]:
    """Return a list that config.json has under ``name``. ExportError where it is none."""
    if not isinstance(value, list | tuple):
        raise ExportError(f"config.json: {name} must be a list, not {repr(value)[:50]}")
    return list(value)


def check_against_tensors(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Compare config.json with the tensors' ``sizes``; of a section, the fields that config.json
    has there. CheckpointMismatch where they differ."""
    differences = [
        (name, *_differing_fields(config[name], value))
        for name, value in sizes.items()
        if name in config
    ]
    wrong = [
        f"{name}: config.json says {config_part}, the checkpoint has {tensor_part}"
        for name, config_part, tensor_part in differences
        if config_part != tensor_part
    ]
    if wrong:
        raise CheckpointMismatch("; ".join(wrong))


def _differing_fields(config_part: Any, tensor_part: Any) -> tuple[Any, Any]:
    """Return two values as they are; two sections with those fields of the first alone that the
    second has not alike."""
    if not (isinstance(config_part, Mapping) and isinstance(tensor_part, Mapping)):
        return config_part, tensor_part
    names = [
        name
        for name in config_part
        if name not in tensor_part or config_part[name] != tensor_part[name]
    ]
    return (
        {name: config_part[name] for name in names},
        {name: tensor_part[name] for name in names if name in tensor_part},
    )


def vocabulary_of(config: Mapping[str, Any], folder: Path) -> Any:
    """Return the tokens that config.json lists, or those of the file in ``folder`` that it names,
    by default a vocab.txt. ExportError where that cannot be read."""
    value = config.get("vocabulary", VOCABULARY)
    return (
        read_vocabulary(folder / value) if isinstance(value, str) else listed(value, "vocabulary")
    )


def check_positions(max_length: int, positions: int) -> None:
    """Raise ValueError where texts could be longer than the network has positions for."""
    if max_length > positions:
        raise ValueError(f"max_length is over the {positions} positions")


def read_names(path: Path, field: str) -> Any:
    """Return the JSON list of names that ``field`` says is in a file."""
    return read_json(path, f"{field} {path.name}")
