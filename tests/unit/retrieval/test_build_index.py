"""`vlserve index`: what is embedded, what is left out, and that a killed run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.echo_archive import TEXTS, pack_echo_dual, write_images, write_lines
from vlserve.errors import ArchiveError, DataError
from vlserve.exporter.pack import HANDLERS_DIR, draft_of, pack_members
from vlserve.exporter.probes import answer_in_process
from vlserve.retrieval import build, index_files
from vlserve.retrieval.build import IndexReport, build_index
from vlserve.retrieval.corpus import read_corpus
from vlserve.retrieval.encode import SHARD
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.task import difference
from vlserve.runtime.types import Request

pytestmark = pytest.mark.training


@pytest.fixture
def quick_probes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index answers its probes in this process: for tests of what is embedded."""

    def answer(archive: Path, requests: Any) -> Any:
        return answer_in_process(archive, requests, tmp_path_factory.mktemp("probes"))

    monkeypatch.setattr(build, "answer_by_archive", answer)


quick = pytest.mark.usefixtures("quick_probes")


def index(archive: Path, data: Path, out: Path, **more: Any) -> IndexReport:
    return build_index(archive, data, out, handlers=HANDLERS_DIR, **more)


def ask(report: IndexReport, folder: Path, **fields: Any) -> Any:
    if not folder.exists():
        unpack_archive(report.path, folder)
    (answer,) = open_folder(folder).run([Request(fields)]).answers
    return answer


@quick
def test_lines_that_cannot_be_used_are_reported_and_left_out(tmp_path: Path) -> None:
    lines: list[Any] = write_images(tmp_path, 3)
    more = [{"id": f"m{at}", "img": "0.png"} for at in range(4)]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    lines += ["not JSON\n", "\n", {"img": "0.png"}, {"id": "i0", "img": "1.png"}]
    lines += [{"id": "t", "text": "no image"}, {"id": "gone", "img": "gone.png"}]
    lines += [{"id": "broken", "img": "broken.png"}, {"id": "both", "img": "a", "features": "b"}]
    data = write_lines(tmp_path / "items.jsonl", lines + more)
    archive = pack_echo_dual(tmp_path)
    report = index(archive, data, tmp_path / "out")
    assert (report.of, report.items) == ("image", 7)
    assert [bad.line for bad in report.bad_lines] == [4, 6, 7, 8, 9, 10, 11]
    reasons = " ".join(bad.reason for bad in report.bad_lines)
    for reason in (
        "not JSON",
        "id must be",
        "i0 is on line 1",
        "gone.png",
        "broken: ",
        "one of them",
    ):
        assert reason in reasons
    answer = ask(report, tmp_path / "unpacked", text="a cat", top_k=3)
    assert {result["id"] for result in answer["results"]} <= {
        "i0",
        "i1",
        "i2",
        *(m["id"] for m in more),
    }
    mostly_bad = write_lines(tmp_path / "items.jsonl", [*lines, *more[:3]])
    with pytest.raises(DataError, match=r"^7 of the 13 lines of .* cannot be used"):
        index(archive, mostly_bad, tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.mar"))


def test_captions_become_items_of_their_own(tmp_path: Path) -> None:
    lines = [{"id": "a", "img": "none.png", "captions": list(TEXTS[:2])}, {"id": "b", "text": "x"}]
    corpus = read_corpus(write_lines(tmp_path / "items.jsonl", lines), "text")
    assert [item.id for item in corpus.items] == ["a#0", "a#1", "b"]
    assert [item.fields["text"] for item in corpus.items] == [*TEXTS[:2], "x"]


@pytest.mark.parametrize("lines", [[], ["{}\n"], [{"id": "a", "text": 3}]])
def test_a_file_without_a_usable_line_is_refused(lines: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable line"):
        read_corpus(write_lines(tmp_path / "items.jsonl", lines))


def test_the_same_index_is_the_same_bytes(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 5))
    archive = pack_echo_dual(tmp_path)
    first, second = (index(archive, data, tmp_path / out) for out in ("one", "two"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.kept == {"image_states": "float16"}
    assert first.path.name == "dual-index-1.mar"


@quick
def test_it_runs_on_the_cores_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    start = build._started

    def record_start(folder: Path, options: Any, log: Path) -> Any:
        calls.append(tuple(options))
        return start(folder, options, log)

    monkeypatch.setattr(build, "_started", record_start)
    monkeypatch.setattr(build, "usable_cores", lambda: 3)
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 2))
    assert index(pack_echo_dual(tmp_path), data, tmp_path / "out").items == 2
    (options,) = calls
    assert options[options.index("--threads") + 1] == "3"


class Killed(Exception):
    """As by a signal, in the middle of a run."""


def killed_after(shards: int) -> Any:
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        if len(lines) == shards:
            raise Killed

    return progress


def shards_of(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.glob(".*/0*.npz")}


@quick
def test_a_killed_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    lines = write_images(tmp_path, 2) * (2 * SHARD)
    lines = [{"id": f"n{place}", "img": line["img"]} for place, line in enumerate(lines)]
    data, archive = write_lines(tmp_path / "items.jsonl", lines), pack_echo_dual(tmp_path)
    whole = index(archive, data, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Killed):
        index(archive, data, out, progress=killed_after(2))
    shards = shards_of(out)
    assert {"00000.npz", "00001.npz"} <= shards.keys()
    (work,) = out.glob(".*.shards")
    (work / "00003.npz").unlink(missing_ok=True)
    (work / "00003.partial").write_bytes(b"cut off")
    snapshots: list[dict[str, int]] = []
    report = index(archive, data, out, progress=lambda line: snapshots.append(shards_of(out)))
    times = {
        name: time for name, time in snapshots[0].items() if name in ("00000.npz", "00001.npz")
    }
    assert times == {name: shards[name] for name in times} and len(times) == 2
    assert report.items == 4 * SHARD
    assert report.path.read_bytes() == whole.path.read_bytes()
    assert not list(out.glob(".*"))


@quick
@pytest.mark.parametrize("part", ["data", "image", "archive"])
def test_what_has_changed_is_embedded_anew(part: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 3))
    archive, out = pack_echo_dual(tmp_path), tmp_path / "out"
    with pytest.raises(Killed):
        index(archive, data, out, progress=killed_after(1))
    (before,) = shards_of(out).values()
    if part == "data":
        write_lines(data, [*write_images(tmp_path, 3)[:2], {"id": "new", "img": "2.png"}])
    elif part == "image":
        (tmp_path / "1.png").write_bytes((tmp_path / "2.png").read_bytes() + b"\0")
    else:
        archive = pack_echo_dual(tmp_path, shift=1)
    times: list[int] = []
    report = index(archive, data, out, progress=lambda line: times.extend(shards_of(out).values()))
    assert before not in times
    fresh = index(archive, data, tmp_path / "fresh")
    assert report.path.read_bytes() == fresh.path.read_bytes()


def test_an_archive_that_embeds_nothing_of_the_kind_is_refused(tmp_path: Path) -> None:
    from vlserve.exporter.echo import pack_echo

    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 2))
    with pytest.raises(DataError, match="task tag"):
        index(pack_echo(tmp_path, "tagger", 1), data, tmp_path / "out")


def test_states_beyond_the_limit_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MAX_BYTES", 100)
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 2))
    with pytest.raises(DataError, match="without re-ranking"):
        index(pack_echo_dual(tmp_path), data, tmp_path / "out")


OLDER = {
    "inputs.py": (
        ("return {TEXT: np.array(text)}", 'return {"text_ids": self._tokenizer.ids(text)}'),
        ("def tokenise(", "def no_tokenise("),
    ),
    "pipeline.py": (("self._tokenised(batch, samples)", "samples"),),
    **dict.fromkeys(("manifest.py", "graphs.py", "decoding.py"), (("TensorSpec", "Tensor"),)),
}


def test_texts_go_through_runtimes_that_tokenise_each_in_sample(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "items.jsonl", [{"id": "a", "captions": list(TEXTS)}])
    archive, folder = pack_echo_dual(tmp_path), tmp_path / "older"
    manifest = unpack_archive(archive, folder)
    for name, changes in OLDER.items():
        file = folder / "vlserve" / "runtime" / name
        code = file.read_text(encoding="utf-8")
        for ours, theirs in changes:
            assert ours in code
            code = code.replace(ours, theirs)
        file.write_text(code, encoding="utf-8")
    runtime = folder / "vlserve" / "runtime"
    for file in (*runtime.glob("*.py"), *(folder / "handlers").glob("*.py")):
        code = file.read_text(encoding="utf-8")
        file.write_text(code.replace("runtime.types", "runtime.contract"), encoding="utf-8")
    (runtime / "types.py").rename(runtime / "contract.py")
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")
    members = {file.relative_to(folder).as_posix(): file for file in files}
    older = pack_members(tmp_path / "packed", draft_of(manifest), members)
    for edition, from_ in (("new", archive), ("old", older)):
        unpack_archive(index(from_, data, tmp_path / f"{edition}-out").path, tmp_path / edition)
    new, old = (tmp_path / edition / "assets" / "index" for edition in ("new", "old"))
    names = [file.name for file in sorted(new.iterdir())]
    assert "text_states.npy" in names
    assert all((new / name).read_bytes() == (old / name).read_bytes() for name in names)


def test_an_archive_whose_code_fails_says_why(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 2))
    archive = pack_echo_dual(tmp_path)
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    (handlers / "retrieve.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (handlers / "match.py").write_bytes((HANDLERS_DIR / "match.py").read_bytes())
    for entry_point in ("torchserve_handler.py", "triton_model.py"):
        (handlers / entry_point).write_bytes(b"")
    with pytest.raises(ArchiveError, match="nothing_of_this_name"):
        build_index(archive, data, tmp_path / "out", handlers=handlers)


@quick
def test_a_large_index_is_searched_by_a_graph_of_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, 60))
    archive = pack_echo_dual(tmp_path, task="embed")
    exact = index(archive, data, tmp_path / "exact")
    monkeypatch.setattr(index_files, "EXACT_UP_TO", 50)
    monkeypatch.setattr(build, "EXACT_UP_TO", 50)
    large = index(archive, data, tmp_path / "large")
    repeat = index(archive, data, tmp_path / "again")
    assert large.path.read_bytes() == repeat.path.read_bytes()
    assert (exact.search, large.search) == ("exact", "faiss HNSW")
    for text in TEXTS[:3]:
        expected = ask(exact, tmp_path / "a", text=text, top_k=10)
        answer = ask(large, tmp_path / "b", text=text, top_k=10)
        assert difference(expected, answer, atol=1e-6) is None
    assert (tmp_path / "b" / "assets" / "index" / "neighbours.faiss").is_file()


@quick
@pytest.mark.parametrize(("rerank", "reranked"), [(16, 64), (70, 70), (0, 0)])
def test_an_answer_has_a_most_of_items(rerank: int, reranked: int, tmp_path: Path) -> None:
    captions = [f"{TEXTS[0]}{n}" for n in range(1002)]
    data = write_lines(tmp_path / "items.jsonl", [{"id": "a", "captions": captions}])
    report = index(pack_echo_dual(tmp_path), data, tmp_path / "out", of="text", rerank=rerank)
    (image_line,) = write_images(tmp_path, 1)
    queries: list[tuple[dict[str, Any], int]] = [({"text": "a cat"}, 1000)]
    queries.append(({"image": (tmp_path / image_line["img"]).read_bytes()}, reranked or 1000))
    for query, most in queries:
        answer = ask(report, tmp_path / "unpacked", **query, top_k=most)
        assert len(answer["results"]) == most
        refused = ask(report, tmp_path / "unpacked", **query, top_k=most + 1)
        assert refused.code is ErrorCode.FIELD_INVALID
        assert refused.message == f"top_k: must be from 1 to {most}"


@quick
def test_arrays_are_plain_and_as_documented(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "items.jsonl", [{"id": "a", "captions": list(TEXTS)}])
    report = index(pack_echo_dual(tmp_path), data, tmp_path / "out")
    unpack_archive(report.path, tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / "assets" / "index"
    arrays = {file.stem: np.load(file, allow_pickle=False) for file in folder.glob("*.npy")}
    assert json.loads((folder / "ids.json").read_text(encoding="utf-8")) == [
        f"a#{n}" for n in range(len(TEXTS))
    ]
    lengths = [max(len(text), 1) for text in TEXTS]
    assert np.diff(arrays["offsets"]).tolist() == [min(length, 15) for length in lengths]
    assert arrays["text_states"].shape == (arrays["offsets"][-1], 4)
    assert np.allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-6)
