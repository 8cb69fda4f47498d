"""The archive's own task with a fault.

The drill packs this file as handlers/<task>.py of a twin, and the task's own file beside it as
handlers/drilled_<task>.py. assets/fault.json says what goes wrong: {"kind", "share", "delay_ms"}.
The archive's own probes are answered without fault, so that the twin can be registered.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlserve.runtime.body import parse_fields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import load_task

if TYPE_CHECKING:  # runtimes of older archives call the module otherwise
    from vlserve.runtime.types import Answer, Arrays, Backend, Sample

_HERE = Path(__file__)
_Original = load_task(_HERE.with_name(f"drilled_{_HERE.name}"))


class FaultyTask(_Original):  # type: ignore[misc, valid-type]
    """Kinds: none, slow, fails, differs, crashes; ``share`` of the requests are hit."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        fault = json.loads((root / "assets" / "fault.json").read_text(encoding="utf-8"))
        self._kind, self._share = fault["kind"], fault["share"]
        self._delay_s = fault["delay_ms"] / 1000
        self._probes = [parse_fields(self.fields, probe.fields) for probe in manifest.probes]
        self._chance = random.Random(os.getpid())

    def preprocess(self, fields: Any) -> Sample:
        if self._hits("slow", fields):
            time.sleep(self._delay_s)
        if self._hits("crashes", fields):
            os._exit(70)
        return super().preprocess(fields)  # type: ignore[no-any-return]

    def postprocess(self, outputs: Arrays, index: int, fields: Any) -> Answer:
        if self._hits("fails", fields):
            raise RuntimeError("the drill's fault")
        if self._hits("differs", fields):
            # each by a step of its own: what belongs together (ids, scores) does no longer
            outputs = {
                name: np.roll(array, place, axis=-1)
                for place, (name, array) in enumerate(outputs.items(), start=1)
            }
        return super().postprocess(outputs, index, fields)  # type: ignore[no-any-return]

    def _hits(self, kind: str, fields: Any) -> bool:
        return (
            kind == self._kind
            and self._chance.random() < self._share
            and fields not in self._probes
        )
