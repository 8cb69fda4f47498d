"""A command that a signal ends takes what it started, and its temporary files, with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from support.command_line import Run
from support.echo_archive import pack_echo_dual, write_images, write_lines
from vlserve.exporter.echo import LABELS, pack_echo

PROJECT = Path(__file__).parents[3]
MAIN = "from vlserve.cli import main; main()"
PATIENCE_S = 120
"""A hung command fails its test; nothing is judged by it."""
Words = list[str]


def indexing(folder: Path) -> Words:
    lines = write_images(folder, 4) * 1000
    lines = [{**line, "id": str(number)} for number, line in enumerate(lines)]
    data = write_lines(folder / "items.jsonl", lines)
    archive = pack_echo_dual(folder)
    return ["index", str(archive), "--data", str(data), "--out", str(folder / "out")]


def exporting(folder: Path) -> Words:
    state = {"words.weight": torch.zeros(128, 2), "colour.weight": torch.zeros(2, 3)}
    torch.save(state | {"colour.bias": torch.zeros(2)}, folder / "m.pth")
    (folder / "config.json").write_text(json.dumps({"labels": ["a", "b"]}), encoding="utf-8")
    recipe = str(PROJECT / "examples" / "colours.py")
    return ["export", recipe, "--checkpoint", str(folder / "m.pth"), "--out", str(folder / "out")]


def evaluating(folder: Path) -> Words:
    archive = pack_echo(folder, "echo", 1, delay_ms=1000 * PATIENCE_S)
    write_images(folder, 1)
    line = {"id": "a", "img": "0.png", "text": "a", "label": LABELS[0]}
    data = write_lines(folder / "items.jsonl", [line])
    return ["evaluate", str(archive), "--data", str(data)]


COMMANDS: dict[str, Callable[[Path], Words]] = {
    "index": indexing,
    "export": exporting,
    "evaluate": evaluating,
}


def test_a_command_that_ends_leaves_the_handlers_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("serve", "file").line
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def started(words: Words, scratch: Path) -> Iterator["subprocess.Popen[bytes]"]:
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
        # What nohup ignores, it would ignore too.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        for member in family(process.pid):
            member.kill()
        process.communicate()


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.mark.export
@pytest.mark.parametrize(
    ("command", "number"),
    [*((command, signal.SIGTERM) for command in COMMANDS), ("index", signal.SIGHUP)],
)
def test_nothing_is_left_of_a_stopped_command(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    words, scratch = COMMANDS[command](tmp_path), tmp_path / "scratch"
    with started(words, scratch) as process:
        # The list of all processes is dear: only when the folder, which comes first, is there.
        wait_until(lambda: any(scratch.glob("vlserve-*")), process)
        wait_until(lambda: len(family(process.pid)) > 1, process)
        children = family(process.pid)[1:]
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 128 + number
        assert f"vlserve: stopped by {number.name}" in stderr.decode()
        assert b"Traceback" not in stderr
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert not alive
        assert not list(scratch.glob("vlserve-*"))
    assert not list(tmp_path.glob("out/*.mar"))


def test_a_temporary_folder_is_made_and_removed_whole() -> None:
    """The signal comes in the middle of both, and ends the command right after."""
    code = (
        "import os, shutil, signal, sys, tempfile, time\n"
        "from vlserve.cli.stopping import Stopped, ended_by_signals\n"
        "signals = ended_by_signals()\n"
        "signals.__enter__()\n"
        "whole, where = getattr(os, sys.argv[1]), []\n"
        "def interrupted(path, *rest, **more):\n"
        "    done = whole(path, *rest, **more)\n"
        "    if 'vlserve-test' in str(path) or sys.argv[1] == 'rmdir':\n"
        "        where.append(path)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0)\n"
        "    return done\n"
        "setattr(os, sys.argv[1], interrupted)\n"
        "try:\n"
        "    with tempfile.TemporaryDirectory(prefix='vlserve-test-') as folder:\n"
        "        for name in 'abc':\n"
        "            os.makedirs(folder + '/' + name + '/d')\n"
        "    time.sleep(60)\n"
        "except Stopped:\n"
        "    left = os.path.exists(folder) if 'folder' in globals() else os.path.exists(where[0])\n"
        "    print('stopped', len(where) > 0, left)\n"
    )
    for call in ("mkdir", "rmdir"):
        run = subprocess.run(
            [sys.executable, "-c", code, call],
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
        )
        assert run.stdout == "stopped True False\n", call


def test_minutes_in_compiled_code_do_not_hold_a_signal_back(tmp_path: Path) -> None:
    """As faiss spends them on a large index; here hashing stands in, for longer than the test."""
    code = (
        "import hashlib, sys, threading\n"
        "import faiss, numpy as np\n"
        "from pathlib import Path\n"
        "from vlserve.cli.stopping import ended_by_signals\n"
        "from vlserve.retrieval import index_files\n"
        "def add(graph, vectors):\n"
        "    threading.Timer(0.2, print, ('within it',), {'flush': True}).start()\n"
        "    hashlib.pbkdf2_hmac('sha1', b'', b'', 2**31 - 1)\n"
        "faiss.IndexHNSWFlat.add = add\n"
        "signals = ended_by_signals()\n"
        "signals.__enter__()\n"
        "index_files._write_graph(np.zeros((8, 4), 'float32'), Path(sys.argv[1]))\n"
    )
    file = tmp_path / "neighbours.faiss"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"within it\n"
            process.terminate()
            assert process.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not file.exists()


def test_what_the_caller_ignores_stays_ignored() -> None:
    """As nohup does; and a second signal does not break the cleaning up."""
    code = (
        "import os, signal\n"
        "from vlserve.cli.stopping import Stopped, ended_by_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signals = ended_by_signals()\n"
        "signals.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except Stopped as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('cleaned up after', stop.signal.name, stop.code)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert run.stdout == "cleaned up after SIGTERM 143\n"
