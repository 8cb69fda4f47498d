"""The files of a run's folder, but for its log's: `vlserve.training.run_log`."""

import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import vlserve
from vlserve.errors import TrainingError
from vlserve.training.distributed import is_first
from vlserve.training.json_lines import BadLine, write_bad_lines
from vlserve.training.run_log import CURVES, EVENTS, LOG
from vlserve.training.state import load_facts

WEIGHTS, LAST = "model.safetensors", "last.safetensors"
CONFIG, METRICS = "config.json", "metrics.json"
PLOT, BAD_LINES = "confusion.png", "bad_lines.json"
OF_ONE_RUN = (BAD_LINES, WEIGHTS, LAST, METRICS, PLOT, LOG, CURVES)


def begin_folder(
    out: Path, config: Mapping[str, Any], bad_lines: Sequence[BadLine], *, resume: bool
) -> None:
    """Write what a run knows before it trains, in place of an earlier run's files. Of several
    processes the first one writes, here and below."""
    if not is_first():
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in [BAD_LINES] if resume else OF_ONE_RUN:
        (out / name).unlink(missing_ok=True)
    if not resume:
        shutil.rmtree(out / EVENTS, ignore_errors=True)
    if bad_lines:
        write_bad_lines(out / BAD_LINES, bad_lines)
    write_json(out / CONFIG, config)


def keep_record(
    out: Path,
    epochs: Sequence[Mapping[str, Any]],
    metric: str,
    before: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Complete ``training`` in config.json, which export puts into the archive's manifest, by the
    versions of the code, the figures of every epoch, ``evaluation``: those of the best epoch's
    weights with their intervals, and ``before``: the record of what the run began with. Same run,
    same bytes: no times."""
    if not is_first():
        return
    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    config["training"] |= {
        "code": code_versions(),
        "best_by": metric,
        "epochs": [
            {name: _finite(value) for name, value in epoch.items() if name != "seconds"}
            for epoch in epochs
        ],
        **({"evaluation": evaluation} if evaluation else {}),
        **({"before": before} if before else {}),
    }
    write_json(out / CONFIG, config)


def code_versions() -> dict[str, str]:
    """Return versions of what trained: vlserve and the sha256 of its sources, and torch."""
    return {
        "vlserve": importlib.metadata.version("vlserve"),
        "sources_sha256": _sources_sha256(),
        "torch": str(torch.__version__),
    }


@cache
def _sources_sha256() -> str:
    """Read all sources once: what this process runs does not change when they do."""
    package = Path(vlserve.__file__).parent
    sources = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sources.update(file.relative_to(package).as_posix().encode() + b"\n" + file.read_bytes())
    return sources.hexdigest()


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_resumable(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise TrainingError unless ``path`` is the state of a run with the same ``facts``."""
    if not path.is_file():
        raise TrainingError(f"nothing to resume: no {path}. Train without resume first")
    record = load_facts(path)
    differences = [name for name, value in facts.items() if record.get(name) != value]
    if differences:
        raise TrainingError(
            f"{path} is of a run with another {', '.join(differences)}: resume with the same, "
            "or train into another folder"
        )


def write_json(path: Path, content: Any) -> None:
    """Write JSON; ``path`` appears whole."""
    if not is_first():
        return
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
