"""Embed a corpus by an archive's own code, and pack an archive that finds its items."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import ArchiveError, DataError
from vlserve.exporter.pack import Member, draft_of, frozen_code, pack_members
from vlserve.exporter.probes import answer_by_archive, drawn_requests, probes_of
from vlserve.processor import usable_cores
from vlserve.project import Folder
from vlserve.retrieval import encode
from vlserve.retrieval.corpus import Corpus, Kind, read_corpus
from vlserve.retrieval.index_files import EXACT_UP_TO, Stored, store
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve.runtime.manifest import MANIFEST, TORCHSERVE_MANIFEST, Manifest
from vlserve.training.json_lines import BadLine, refuse_mostly_bad

TASKS = ("match", "embed")
"""Whose archives have what an index needs."""
RERANK = 16
"""The nearest so many are held against the query by the graph ``fusion``."""
MAX_BYTES = 8 * 1024**3
"""Of what is kept of all items; an archive may have 16 GiB when it is unpacked."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class IndexReport:
    """``bytes``: of the index alone. ``search``: how the nearest are found. ``kept``: what
    ``fusion`` takes of the items and in which precision it is kept."""

    path: Path
    sha256: str
    of: Kind
    items: int
    bytes: int
    search: str
    kept: Mapping[str, str]
    bad_lines: tuple[BadLine, ...]


def build_index(
    archive: Path,
    data: Path,
    out: Path,
    *,
    of: Kind | None = None,
    name: str | None = None,
    version: int = 1,
    rerank: int = RERANK,
    handlers: Folder,
    progress: Progress = lambda line: None,
) -> IndexReport:
    """Write ``<name>-<version>.mar``, of task retrieve, into the folder ``out``.

    ``archive``: one of task match or embed. ``of``: what of the items is embedded, by default
    images where they have any. ``name``: by default the archive's with ``-index``. ``rerank``: 0
    to rank by cosine alone. An interrupted run resumes after its last whole shard when it is
    started again with the same archive, data, ``of`` and whether there is a ``rerank``. The same
    inputs give the same bytes, on as many cores.

    Raises DataError (no usable line, an archive that embeds nothing of this kind, too many bytes)
    or ArchiveError.
    """
    manifest = verify_archive(archive)
    corpus = read_corpus(data, of)
    fused = _is_fused(manifest, corpus.kind, rerank, archive.name)
    with tempfile.TemporaryDirectory(prefix="vlserve-index-") as scratch:
        folder = Path(scratch) / "archive"
        unpack_archive(archive, folder)
        source = draft_of(manifest) | {"task": "retrieve", "probes": [], "model": name or (
            f"{manifest.model}-index"), "version": version}  # fmt: skip
        draft = source | {
            "options": {**manifest.options, "index": {"of": corpus.kind, "rerank": fused * rerank}}
        }
        requests = _queries(draft, corpus.kind, handlers)
        work = _work_folder(out, draft, _facts(archive, corpus, fused))
        queries = requests if fused else None
        _encode(folder, corpus, queries, work, progress)
        shards = sorted(work.glob("*.npz"))
        index = Path(scratch) / "index"
        contents = store(shards, [item.id for item in corpus.items], index)
        bad_lines = _bad_lines(corpus, contents)
        refuse_mostly_bad(data, len({corpus.items[row].line for row in contents.rows}), bad_lines)
        progress(f"packing {len(contents.rows)} items")
        members = _members(folder, manifest, index, handlers)
        draft_archive = pack_members(Path(scratch) / "unprobed", draft, members)
        answers = answer_by_archive(draft_archive, requests)
        draft["probes"] = probes_of(draft, requests, answers, handlers)
        path = pack_members(out, draft, members)
        size = sum(file.stat().st_size for file in index.iterdir())
    shutil.rmtree(work)
    return IndexReport(
        path=path,
        sha256=file_sha256(path),
        of=corpus.kind,
        items=len(contents.rows),
        bytes=size,
        search=_search(contents, manifest, corpus.kind),
        kept=contents.dtypes,
        bad_lines=bad_lines,
    )


def _bad_lines(corpus: Corpus, contents: Stored) -> tuple[BadLine, ...]:
    """Return what was left out of the corpus, in the order of its lines."""
    refusals = [
        BadLine(str(corpus.path), corpus.items[row].line, f"{corpus.items[row].id}: {why}")
        for row, why in contents.refused.items()
    ]
    return tuple(sorted((*corpus.bad_lines, *refusals), key=lambda bad: bad.line))


def _is_fused(manifest: Manifest, kind: Kind, rerank: int, name: str) -> bool:
    """Return whether ``fusion`` says which items go best with a query."""
    if manifest.task not in TASKS:
        raise DataError(f"{name} serves task {manifest.task}: index one of {' or '.join(TASKS)}")
    if not encode.takes(manifest, kind):
        raise DataError(f"{name} takes no {kind}s: --of says what of the items is embedded")
    fused = bool(rerank) and "fusion" in manifest.graphs
    if not fused and not _embeds(manifest, kind):
        raise DataError(f"{name} makes no vectors of {kind}s: rerank must not be 0")
    return fused


def _embeds(manifest: Manifest, kind: str) -> bool:
    graph = manifest.graphs.get(kind)
    return graph is not None and any(tensor.name == f"{kind}_embedding" for tensor in graph.outputs)


def _search(contents: Stored, manifest: Manifest, kind: Kind) -> str:
    if not _embeds(manifest, kind):
        return "fusion of all"
    return "exact" if len(contents.rows) <= EXACT_UP_TO else "faiss HNSW"


def _queries(draft: Mapping[str, Any], kind: Kind, handlers: Folder) -> list[dict[str, Any]]:
    """Return drawn requests: of the kind that is not in the index, where the model takes it."""
    queries = drawn_requests(draft, handlers)
    of_other_kind = [fields for fields in queries if ("text" in fields) == (kind == "image")]
    return of_other_kind or queries


def _facts(archive: Path, corpus: Corpus, fused: bool) -> dict[str, Any]:
    """Return what shards depend on; a changed file of an item shows by its size or time."""
    digest = hashlib.sha256(corpus.path.read_bytes())
    for item in corpus.items:
        for name, value in sorted(item.fields.items()):
            if name.endswith("_path") and Path(value).is_file():
                stat = Path(value).stat()
                digest.update(f"{value} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    encoder = hashlib.sha256(Path(encode.__file__).read_bytes()).hexdigest()
    return {
        "archive": file_sha256(archive),
        "data": digest.hexdigest(),
        "kind": corpus.kind,
        "fused": fused,
        "encoder": encoder,
    }


def _work_folder(out: Path, draft: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Return the folder of the shards of a run that has not ended, emptied of those of another."""
    work = out / f".{draft['model']}-{draft['version']}.shards"
    facts_file = work / "facts.json"
    facts_text = json.dumps(facts, sort_keys=True)
    if facts_file.is_file() and facts_file.read_text(encoding="utf-8") == facts_text:
        return work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    facts_file.write_text(facts_text, encoding="utf-8")
    return work


def _encode(
    folder: Path,
    corpus: Corpus,
    queries: Sequence[Mapping[str, Any]] | None,
    work: Path,
    progress: Progress,
) -> None:
    """Write the shards that are missing, by the archive's own code in a process of its own."""
    items = work / "items.jsonl"
    _write_lines(items, [item.fields for item in corpus.items])
    options = ["--kind", corpus.kind, "--items", str(items), "--shards", str(work)]
    options += ["--threads", str(usable_cores())]
    if queries is not None:
        _write_lines(work / "queries.jsonl", queries)
        options += ["--queries", str(work / "queries.jsonl")]
    total, size = len(corpus.items), 0
    with _started(folder, options, work / "stderr.txt") as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            size += message["bytes"]
            index_bytes = size * total // message["done"]
            if index_bytes > MAX_BYTES:
                raise DataError(
                    f"an index of {total} items would have {index_bytes / 1024**3:.1f} GiB, the "
                    f"limit is {MAX_BYTES // 1024**3}: index without re-ranking, or fewer items"
                )
            progress(f"embedded {message['done']} of {total} items")
        if process.wait() != 0:
            log = (
                (work / "stderr.txt")
                .read_text(errors="replace", encoding="utf-8")
                .strip()
                .splitlines()
            )
            why = log[-1] if log else f"it exits with {process.returncode}"
            raise ArchiveError(f"the code of the archive failed: {why}")


@contextmanager
def _started(
    folder: Path, options: Sequence[str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the encoder, which is killed when the body is left early."""
    command = [sys.executable, "-P", str(Path(encode.__file__)), str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(usable_cores())}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _members(folder: Path, manifest: Manifest, index: Path, handlers: Folder) -> dict[str, Member]:
    """Return the archive's own members, so that queries go through the code that the items went
    through; with the task's file and the index."""
    exclusions = {f"handlers/{manifest.task}.py", TORCHSERVE_MANIFEST, MANIFEST}
    members: dict[str, Member] = {
        name: folder / name for name in manifest.files if name not in exclusions
    }
    task = "handlers/retrieve.py"
    members[task] = frozen_code("retrieve", handlers)[task]
    return members | {f"assets/index/{file.name}": file for file in sorted(index.iterdir())}


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
