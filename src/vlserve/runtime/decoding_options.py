"""How a request wants its text written: searched for, or drawn, within the limits of the manifest.

A request's wishes travel through the batch as one array, ``manner``, so that neighbours with other
wishes are answered together.
"""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vlserve.runtime.body import Number, RequestFields, Switch, WholeNumber
from vlserve.runtime.decoding import BeamSearch
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.sampling import Nucleus
from vlserve.runtime.types import Float64Array, Sample

MANNER = "manner"
MAX_SEED = 10**9 - 1
_DRAWING = ("top_p", "temperature", "seed")
"""What a request says only of a text that is drawn."""


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("must be two numbers above 0, the least first")
    return limits


Limits = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The least and the most that a request may ask for."""


class Sampling(BaseModel):
    """How texts are drawn where a request says nothing else, and what it may say; see Nucleus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=50, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    repetition_penalty: float = Field(default=1.1, gt=0)
    top_p_limits: Limits = (0.01, 1.0)
    temperature_limits: Limits = (0.1, 2.0)
    repetition_penalty_limits: Limits = (1.0, 2.0)
    """Of texts that are drawn, and of those that are searched for."""


class WritingFields(RequestFields):
    """What a request may say of how its text is written."""

    sample: Switch | None = None
    """true: the text is drawn; false: the likeliest is searched for. By default it is drawn where
    ``top_p``, ``temperature`` or ``seed`` is given."""
    top_p: Number | None = None
    temperature: Number | None = None
    seed: WholeNumber | None = None
    """0 by default: the same request with the same seed gets the same text."""
    repetition_penalty: Number | None = None


class Manners:
    """Reads wishes, and what a batch of them means. ``rules`` are those of the search."""

    def __init__(self, rules: BeamSearch, sampling: Sampling | None) -> None:
        self._rules = rules
        self._sampling = sampling

    def sample(self, fields: WritingFields) -> Sample:
        """Return ``manner`` of one request, float64 (5,): repetition penalty, whether the text is
        drawn, top p, temperature, seed. RequestError (FIELD_INVALID) for what is not on offer."""
        values = {name: getattr(fields, name) for name in WritingFields.model_fields}
        names = [name for name, value in values.items() if value is not None]
        usual = self._sampling or Sampling()
        if names and self._sampling is None:
            raise _invalid(f"{names[0]}: this model takes no {names[0]}")
        draw_options = [name for name in names if name in _DRAWING]
        if fields.sample is False and draw_options:
            raise _invalid(f"{draw_options[0]}: says how a text is drawn, and sample is false")
        is_drawn = bool(fields.sample or draw_options)
        penalty = usual.repetition_penalty if is_drawn else self._rules.repetition_penalty
        wishes = (
            _within("repetition_penalty", values, penalty, usual.repetition_penalty_limits),
            float(is_drawn),
            _within("top_p", values, usual.top_p, usual.top_p_limits),
            _within("temperature", values, usual.temperature, usual.temperature_limits),
            _within("seed", values, 0, (0, MAX_SEED)),
        )
        return {MANNER: np.array(wishes, dtype=np.float64)}

    def searches(self, manners: Float64Array) -> list[tuple[BeamSearch, list[int]]]:
        """Return the searches of a batch (batch, 5), each with the items that it is for."""
        of_penalty: dict[float, list[int]] = {}
        for item, (penalty, is_drawn, *_) in enumerate(manners.tolist()):
            if not is_drawn:
                of_penalty.setdefault(penalty, []).append(item)
        return [
            (replace(self._rules, repetition_penalty=penalty), items)
            for penalty, items in of_penalty.items()
        ]

    def draws(self, manners: Float64Array) -> dict[int, Nucleus]:
        """Return how the texts of a batch (batch, 5) are drawn, by their items."""
        usual, search = self._sampling or Sampling(), self._rules
        return {
            item: Nucleus(
                max_length=search.max_length,
                end_id=search.end_id,
                min_length=search.min_length,
                top_p=top_p,
                top_k=usual.top_k,
                temperature=temperature,
                repetition_penalty=penalty,
                seed=int(seed),
            )
            for item, (penalty, is_drawn, top_p, temperature, seed) in enumerate(manners.tolist())
            if is_drawn
        }


def _within(name: str, values: dict[str, Any], usual: float, limits: tuple[float, float]) -> float:
    value = values[name]
    if value is None:
        return usual
    if not limits[0] <= value <= limits[1]:
        raise _invalid(f"{name}: must be from {limits[0]} to {limits[1]}, not {value}")
    return float(value)


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
