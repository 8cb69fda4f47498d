"""Handlers of adopted archives, started and asked in this process."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vlserve.exporter.pack import HANDLERS_DIR
from vlserve.runtime.exchange import raw_of
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.pipeline import Pipeline
from vlserve.runtime.task import Surroundings, load_task
from vlserve.runtime.types import ItemError, Request

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the import leaves a file open
    import ts  # noqa: F401

SHA256 = "0" * 64

Start = Callable[..., Pipeline]


@contextmanager
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Give what starts a handler's source; what it changes of this process is undone."""
    modules, folder = set(sys.modules), Path.cwd()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("VLSERVE_TRUST", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def start(
        source: str,
        batch_size: int = 1,
        handler: str = "own.py",
        files: Mapping[str, bytes] | None = None,
        model: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Pipeline:
        legacy = tmp_path / "archive" / "legacy"
        (legacy / "MAR-INF").mkdir(parents=True)
        (legacy / "own.py").write_text(source, encoding="utf-8")
        for name, content in (files or {}).items():
            (legacy / name).write_bytes(content)
        about = {"model": {"modelName": "Words", "handler": handler, **(model or {})}}
        (legacy / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(about), encoding="utf-8")
        members = ("handlers/adopted.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json")
        manifest = Manifest.model_validate(
            {
                **{"model": "words", "version": 1, "task": "adopted", "family": "torchserve"},
                "graphs": {},
                "adopted": {
                    **{"name": "Words", "version": "1.0", "sha256": SHA256, "handler": handler},
                    "batch_size": batch_size,
                    **fields,
                },
                "files": dict.fromkeys(members, SHA256),
            }
        )
        task = load_task(HANDLERS_DIR / "adopted.py")(manifest, legacy.parent, {})
        task.start(Surroundings(batch_size=batch_size))
        return Pipeline(manifest, task)

    yield start
    os.chdir(folder)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def ask(pipeline: Pipeline, *bodies: bytes, kind: str = "text/plain") -> list[tuple[int, bytes]]:
    """Return status and body of each request of one batch."""
    fields = [{"headers": {"content-type": kind}, "content": body} for body in bodies]
    answers = pipeline.run([Request(item, "") for item in fields]).answers
    assert not any(isinstance(answer, ItemError) for answer in answers)
    replies = [raw_of(answer) for answer in answers if not isinstance(answer, ItemError)]
    return [(reply.status, reply.content) for reply in replies]
