"""The folder of golden cases: outputs of the original public code, seeded and tiny.

A case is ``<family>/<case>/`` with config.json, inputs, outputs and state_dict.safetensors. The
folder is $VLSERVE_GOLDEN, else shared/golden beside the checkout, else the small copy here; what a
folder lacks of a family is taken from the copy.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

COPY = Path(__file__).parents[1] / "golden" / "cases"
RTOL = 1e-5
COVERED: set[str] = set()
"""Families that some test has asked for."""


def golden_folder() -> Path:
    folder_name = os.environ.get("VLSERVE_GOLDEN")
    if folder_name:
        if not Path(folder_name).is_dir():
            raise FileNotFoundError(f"VLSERVE_GOLDEN is {folder_name}, which is no folder")
        return Path(folder_name)
    folder = Path(__file__).parents[3] / "shared" / "golden"
    return folder if folder.is_dir() else COPY


@dataclass(frozen=True)
class Case:
    """One run of an original."""

    family: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.family}/{self.folder.name}"

    @cached_property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(
            (self.folder / "config.json").read_text(encoding="utf-8")
        )
        return config

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """``inputs``, ``outputs`` or ``state_dict``."""
        arrays: dict[str, NDArray[Any]] = load_file(self.folder / f"{name}.safetensors")
        return arrays


def cases(family: str) -> list[Case]:
    """Every case of a family, sorted."""
    COVERED.add(family)
    for root in (golden_folder(), COPY):
        folders = sorted(path.parent for path in (root / family).glob("*/config.json"))
        if folders:
            return [Case(family, folder) for folder in folders]
    raise FileNotFoundError(f"no case of {family} in {golden_folder()} or {COPY}")


def key_shapes(name: str) -> dict[str, list[int]]:
    """Parameter name -> shape of a published checkpoint, in its order."""
    file = Path("keys") / f"{name}.json"
    root = golden_folder() if (golden_folder() / file).is_file() else COPY
    shapes: dict[str, list[int]] = json.loads((root / file).read_text(encoding="utf-8"))["keys"]
    return shapes


def not_covered() -> list[str]:
    """``family (its cases)`` for every family of the folder that no test asked for."""
    families = sorted(path for path in golden_folder().iterdir() if path.is_dir())
    return [
        f"{family.name} ({', '.join(sorted(case.stem for case in family.iterdir()))})"
        for family in families
        if family.name not in COVERED | {"keys"}
    ]


def assert_close(values: NDArray[Any], reference: NDArray[Any], name: str) -> None:
    """Within rtol 1e-5 and atol 1e-5 of the largest reference value."""
    atol = RTOL * float(np.abs(reference).max(initial=0.0))
    np.testing.assert_allclose(values, reference, rtol=RTOL, atol=atol, err_msg=name)
