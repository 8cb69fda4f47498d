"""The page of a version: what the manifest says of its export."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlserve.control.api.console.evaluation import EvaluatedFigure, evaluated_figures
from vlserve.control.api.console.rendering import render
from vlserve.control.domain import Signer, State
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Parity, Quantization, QuantizedGraph


def test_parity_and_the_int8_gate_are_told(tmp_path: Path) -> None:
    manifest = verify_archive(pack_echo(tmp_path, "tagger", 2))
    quantization = Quantization(
        graphs={"model": QuantizedGraph(method="static")},
        calibration_sha256="0" * 64,
        calibrated=256,
        gated=500,
        held_out=True,
        agreement=0.985,
        metric="accuracy",
        fp32=0.912,
        int8=0.909,
    )
    changes = {
        "parity": Parity(cases=6, max_abs_diff=2.5e-6, rtol=1e-4, atol=1e-5),
        "quantization": quantization,
    }
    version = SimpleNamespace(
        **{"model": "tagger", "version": 2, "state": State.READY, "reason": "", "task": "tag"},
        **{"family": "echo", "precision": "int8", "engine": "torchserve", "sha256": "0" * 64},
        signer=Signer("release", "ab" * 32, ""),
        registered_at="2026-11-29T00:00:00+00:00",
        manifest=manifest.model_copy(update=changes),
    )
    page = render(
        "version.html.j2",
        "en",
        {
            **{"version": version, "stable": 1, "goes_back": False, "size": None},
            **{"added": [], "removed": [], "manifest": "{}", "by": ""},
            "evaluated": evaluated_figures(
                {"evaluation": {"items": 90, "map": 0.5, "intervals_95": {"map": [0.41, 0.6]}}}
            ),
        },
    )
    assert "6 cases on unseen shapes, at most 2.5e-06 off the network" in page
    assert "on 500 items 98.5 % of first answers as fp32; accuracy 0.909, fp32 0.912" in page
    assert "<bdi>map</bdi> 0.5 (0.41 – 0.6)" in page
    assert "whoever had the key of the stack" in page
    assert f"<dd>{len(manifest.probes)}</dd>" in page


@pytest.mark.parametrize(
    ("training", "figures"),
    [
        (None, []),
        ({"label_items": {"a": 3}}, []),
        (
            {"evaluation": {"items": 9, "accuracy": 0.5, "intervals_95": {"accuracy": [0.2]}}},
            [EvaluatedFigure("accuracy", 0.5)],
        ),
        (
            {
                "best_by": "accuracy",
                "epochs": [
                    {"epoch": 1, "train_loss": 2.0, "accuracy": 0.8},
                    {"epoch": 2, "train_loss": 1.0, "accuracy": 0.7},
                    {"epoch": 3, "train_loss": 0.9, "accuracy": None},
                ],
            },
            [EvaluatedFigure("accuracy", 0.8)],
        ),
        ({"best_by": [], "epochs": "many", "evaluation": 3}, []),
    ],
)
def test_what_older_and_odd_records_say_of_a_version(
    training: dict[str, Any] | None, figures: list[EvaluatedFigure]
) -> None:
    assert evaluated_figures(training) == figures
