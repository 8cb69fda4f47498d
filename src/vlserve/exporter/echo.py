"""Archives without weights: a whole tagger around an Echo graph, packed in milliseconds.

For tests and drills of everything that serves archives. Needs no torch.
"""

import json
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlserve.exporter.pack import Member, pack_archive
from vlserve.exporter.probes import answer_in_process, drawn_requests, probes_of
from vlserve.runtime.backend import EchoSettings

LABELS = ("animals", "cars", "food", "music", "sport")
CHARACTERS = string.ascii_lowercase + string.digits + " !可爱的猫咪今天做一道家常菜坏慢"
VOCABULARY = {character: index for index, character in enumerate(CHARACTERS, start=2)}
"""Character -> id; 0 is padding, 1 unknown. Probes hold neither 坏 nor 慢: use their ids for
``fail_on_id`` and ``crash_on_id``."""

_GRAPH = "graphs/model.echo.json"
_TEXT = "assets/vocabulary.json"
_SIDE = 32


def pack_echo(
    out_dir: Path, model: str, version: int, labels: Sequence[str] = LABELS, **faults: Any
) -> Path:
    """Write ``<model>-<version>.mar``, a tagger that answers from its inputs alone.

    ``faults``: fields of `EchoSettings`, such as ``delay_ms``, ``fail_share``, ``answer_shift``.
    The probes expect what the archive answers when it does not misbehave.
    """
    settings = EchoSettings(**faults)
    healthy = EchoSettings(answer_shift=settings.answer_shift)
    draft = _draft(model, version, labels)
    requests = drawn_requests(draft)
    with tempfile.TemporaryDirectory(prefix="vlserve-echo-") as scratch:
        draft_archive = pack_archive(Path(scratch), draft, _members(healthy))
        answers = answer_in_process(draft_archive, requests, Path(scratch) / "unpacked")
    draft["probes"] = probes_of(draft, requests, answers)
    return pack_archive(out_dir, draft, _members(settings))


def _draft(model: str, version: int, labels: Sequence[str]) -> dict[str, Any]:
    inputs = [
        {"name": "image", "dtype": "float32", "dims": ["batch", 3, _SIDE, _SIDE]},
        {"name": "text_ids", "dtype": "int64", "dims": ["batch", "text"]},
        {"name": "text_length", "dtype": "int64", "dims": ["batch"]},
    ]
    outputs = [{"name": "logits", "dtype": "float32", "dims": ["batch", len(labels)]}]
    graph = {"file": _GRAPH, "format": "echo", "inputs": inputs, "outputs": outputs}
    return {
        "model": model,
        "version": version,
        "task": "tag",
        "family": "echo",
        "graphs": {"model": graph},
        "image": {"height": _SIDE, "width": _SIDE},
        "text": {
            "tokenizer": "characters",
            "file": _TEXT,
            "max_length": 15,
            "pad_id": 0,
            "unknown_id": 1,
            "pad_to_max": False,
        },
        "labels": list(labels),
    }


def _members(settings: EchoSettings) -> dict[str, Member]:
    return {
        _GRAPH: settings.model_dump_json().encode(),
        _TEXT: json.dumps(VOCABULARY, ensure_ascii=False).encode(),
    }
