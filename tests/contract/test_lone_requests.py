"""Which session of a graph answers: that of more threads, where no other worker is at work."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlserve_worker.busy_workers import BusyWorkers
from vlserve_worker.lone_requests import LoneRequests, TwoSessions, lone_requests
from vlserve_worker.request_filter import Noted, Refusal, RequestFilter

AT_WORK = """
import sys
from pathlib import Path
from vlserve_worker.busy_workers import BusyWorkers
busy = BusyWorkers(Path(sys.argv[1]))
with busy.at_work():
    print("at work", flush=True)
    sys.stdin.readline()
print("at rest", flush=True)
sys.stdin.readline()
"""
DIGEST = "a" * 32
INPUT = np.arange(6, dtype=np.float32).reshape(2, 3)


@contextmanager
def worker(file: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another worker, at work until it gets a line."""
    with subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def stop_work(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "at rest\n"


def test_others_are_busy_while_one_of_them_is_at_work(tmp_path: Path) -> None:
    file = tmp_path / "state" / "busy"
    busy = BusyWorkers(file)
    with busy.at_work():
        assert not busy.others()  # itself alone
    with worker(file) as first, worker(file) as other:
        with busy.at_work():
            assert busy.others()
        stop_work(first)
        assert busy.others()
        stop_work(other)
        assert not busy.others()  # both live


def test_a_worker_that_is_killed_at_work_is_busy_no_longer(tmp_path: Path) -> None:
    busy = BusyWorkers(tmp_path / "busy")
    with worker(tmp_path / "busy") as other:
        assert busy.others()
        other.kill()
        other.wait()
        assert not busy.others()


def test_where_the_system_does_not_say_others_are_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = BusyWorkers(tmp_path / "busy")

    def refuse(*_: Any) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    monkeypatch.setattr("fcntl.fcntl", refuse)
    with busy.at_work():
        assert busy.others()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked archive, as far as it is looked at; what is done to onnxruntime is undone."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", onnxruntime.InferenceSession)
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "model.onnx").write_bytes(one_node("Exp", ["x"], ["batch", 3]))
    return tmp_path


def one_node(
    operator: str, inputs: list[str], dims: list[Any], weights: Sequence[TensorProto] = ()
) -> bytes:
    """An ONNX file: x, float32, to y of the same axes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("x", "y"))
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])], "g", [x], [y], initializer=weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def opened(archive: Path, threads: int = 1) -> Any:
    """A session as the frozen code of an archive opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(archive / "graphs" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    assert options.intra_op_num_threads == threads
    return session


def chosen(session: TwoSessions) -> int:
    """How many threads a run computes on now; it answers what either session answers."""
    counts: list[int] = []

    class Spy:
        def __init__(self, session: Any) -> None:
            self._session = session

        def run(self, *inputs: Any) -> Any:
            counts.append(self._session.get_session_options().intra_op_num_threads)
            return self._session.run(*inputs)

    sessions = TwoSessions(Spy(session.usual), Spy(session.lone), session.requests)
    (answer,) = sessions.run(["y"], {"x": INPUT})
    np.testing.assert_allclose(answer, np.exp(INPUT), rtol=1e-6)
    return counts[0]


def test_a_request_that_comes_alone_gets_all_threads(archive: Path) -> None:
    requests = lone_requests(archive, 3, archive / "busy")
    assert requests
    session = opened(archive)
    assert [node.name for node in session.get_inputs()] == ["x"]
    spinning = "session.force_spinning_stop"  # its threads take no core once a run is over
    assert session.lone.get_session_options().get_session_config_entry(spinning) == "1"
    assert chosen(session) == 1  # nothing is served yet: a warm-up
    with requests.at_work(1):
        assert chosen(session) == 1  # the first one
    with requests.at_work(1):
        assert chosen(session) == 3
        with worker(archive / "busy") as other:
            assert chosen(session) == 1
            stop_work(other)
            assert chosen(session) == 3  # in the middle of a batch, as of a text that is written
    with requests.at_work(2):
        assert chosen(session) == 1
    assert chosen(session) == 1


def test_a_single_request_between_batches_is_none_that_comes_alone(tmp_path: Path) -> None:
    requests = LoneRequests(BusyWorkers(tmp_path / "busy"), 2)

    def batch(size: int) -> bool:
        with requests.at_work(size):
            return requests.is_alone()

    assert [batch(size) for size in (1, 1, 8, 1, 1, 1)] == [False, True, False, False, True, True]
    with worker(tmp_path / "busy") as other:
        assert not batch(1)
        stop_work(other)
        assert not batch(1)  # when the one before began, another worker was at work
        assert batch(1)


def test_a_graph_that_computes_on_as_many_threads_is_opened_once(archive: Path) -> None:
    assert lone_requests(archive, 2, archive / "busy")
    assert not isinstance(opened(archive, 2), TwoSessions)
    assert not isinstance(opened(archive, 0), TwoSessions)  # all there are
    assert isinstance(opened(archive, 1), TwoSessions)


def test_both_sessions_use_the_same_weights(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, scratch = archive / "graphs" / "model.onnx", tmp_path / "scratch"
    weights = numpy_helper.from_array(np.ones(2**20, np.float32), "w")
    graph.write_bytes(one_node("Add", ["x", "w"], ["batch", 2**20], [weights]))
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert lone_requests(archive, 2, archive / "busy")
    session = opened(archive)
    assert isinstance(session, TwoSessions)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = [line.split()[4] for line in maps if str(scratch) in line]
    assert len(files) == 2  # by each session
    assert len(set(files)) == 1  # the same file
    assert list(scratch.iterdir()) == []
    (answer,) = session.lone.run(["y"], {"x": np.zeros((1, 2**20), np.float32)})
    assert (answer == 1).all()


def test_a_graph_that_cannot_be_opened_twice_is_served_once(
    archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = onnxruntime.InferenceSession

    def short_of_memory(file: str, options: Any, **more: Any) -> Any:
        if options.intra_op_num_threads > 1:
            raise RuntimeError("bad allocation")
        return real(file, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", short_of_memory)
    assert lone_requests(archive, 2, archive / "busy")
    assert opened(archive).run(["y"], {"x": INPUT})
    assert "bad allocation" in caplog.text


@pytest.mark.parametrize("why", ["one thread", "no graph", "no file"])
def test_where_it_cannot_gain_nothing_changes(archive: Path, why: str) -> None:
    threads, file = 2, archive / "busy"
    if why == "one thread":
        threads = 1
    elif why == "no graph":
        (archive / "graphs" / "model.onnx").rename(archive / "graphs" / "model.pt")
    else:
        file.mkdir()
    before = onnxruntime.InferenceSession
    assert lone_requests(archive, threads, file) is None
    assert onnxruntime.InferenceSession is before


def test_a_batch_counts_its_requests_without_refusals(tmp_path: Path) -> None:
    lone = LoneRequests(BusyWorkers(tmp_path / "busy"), 2)
    filter_ = RequestFilter(1, None, 100, lone=lone)
    alone: list[bool] = []

    def run(places: list[int], values: list[dict[str, Any]]) -> list[Any]:
        alone.append(lone.is_alone())
        with worker(tmp_path / "busy"):
            alone.append(lone.is_alone())
        return ["said"] * len(places)

    request, failure = Noted({}, DIGEST), Refusal("body_unreadable", "why")
    for _ in range(2):
        filter_.answer([request, failure], run, lambda at, refusal: "refused")
    assert alone == [False, False, True, False]
    filter_.answer([request, request], run, lambda at, refusal: "refused")
    assert alone[4:] == [False, False]
