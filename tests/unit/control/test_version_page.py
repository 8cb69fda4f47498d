"""The page of a version: what the manifest says of its export."""

from pathlib import Path
from types import SimpleNamespace

from vlserve.control.api.console.rendering import render
from vlserve.control.domain import State
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
    told = {
        "parity": Parity(cases=6, max_abs_diff=2.5e-6, rtol=1e-4, atol=1e-5),
        "quantization": quantization,
    }
    version = SimpleNamespace(
        **{"model": "tagger", "version": 2, "state": State.READY, "reason": "", "task": "tag"},
        **{"family": "echo", "precision": "int8", "engine": "torchserve", "sha256": "0" * 64},
        registered_at="2026-11-29T00:00:00+00:00",
        manifest=manifest.model_copy(update=told),
    )
    shown = render(
        "version.html.j2",
        "en",
        {
            **{"version": version, "stable": 1, "goes_back": False, "size": None},
            **{"added": [], "removed": [], "manifest": "{}"},
        },
    )
    assert "6 cases on unseen shapes, at most 2.5e-06 off the network" in shown
    assert "on 500 items 98.5 % of first answers as fp32; accuracy 0.909, fp32 0.912" in shown
    assert f"<dd>{len(manifest.probes)}</dd>" in shown
