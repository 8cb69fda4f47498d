"""A base of models of what people write by hand: true is no 1 there."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class StrictNumbers(BaseModel):
    """Immutable, without unknown fields; a number is finite, and is not true or false."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        parts = value if isinstance(value, list | tuple) else (value,)
        if cls.model_fields[info.field_name or ""].annotation is not bool:
            for part in parts:
                if isinstance(part, bool):
                    raise ValueError(f"{str(part).lower()} cannot stand here")
        return value
