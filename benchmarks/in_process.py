"""The limit: the archive's own code in as many processes as cores, one thread each, no server.

Everything that a server does for its clients, from an image's bytes to an answer's JSON, and
nothing else: requests and answers stay in memory.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from sides import TUNED, plain_environment

_BENCHMARKS = Path(__file__).parent


@dataclass(frozen=True)
class Worked:
    """What one process did."""

    items: int
    seconds: float
    batch_p50_ms: float


class InProcess:
    """Processes that are up, warm and idle until they are asked."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"]) -> None:
        self.processes = processes

    def items_per_s(self, batch_size: int, seconds: float) -> float:
        """All processes together."""
        return sum(done.items / done.seconds for done in self._work(batch_size, seconds))

    def alone_p50_ms(self, seconds: float) -> float:
        """What one item takes in one process, while the others rest."""
        return self._work(1, seconds, self.processes[:1])[0].batch_p50_ms

    def _work(
        self,
        batch_size: int,
        seconds: float,
        processes: Sequence["subprocess.Popen[str]"] | None = None,
    ) -> list[Worked]:
        asked = processes or self.processes
        for process in asked:
            assert process.stdin
            process.stdin.write(f"{batch_size} {seconds}\n")
            process.stdin.flush()
        return [Worked(**json.loads(_line(process))) for process in asked]


@contextmanager
def in_process(folder: Path, count: int) -> Iterator[InProcess]:
    """``folder``: an unpacked archive."""
    command = [sys.executable, __file__, str(folder)]
    with ExitStack() as opened:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=plain_environment(**TUNED),
            )
            opened.enter_context(process)
            opened.callback(process.kill)
            processes.append(process)
        for process in processes:
            _line(process)
        yield InProcess(processes)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the in-process limit's process ended: {process.wait()}")
    return line


def _main(folder: Path) -> None:
    sys.path.insert(0, str(_BENCHMARKS / "peers"))
    from answering import Answering
    from photos import photos

    answer = Answering(folder)
    items = [(photo.jpeg, photo.text.encode()) for photo in photos()]
    print("ready", flush=True)
    for line in sys.stdin:
        batch_size, seconds = int(line.split()[0]), float(line.split()[1])
        began_s, next_item, took_ms = time.monotonic(), 0, []
        while (now_s := time.monotonic()) - began_s < seconds:
            answer([items[(next_item + each) % len(items)] for each in range(batch_size)])
            next_item += batch_size
            took_ms.append((time.monotonic() - now_s) * 1000)
        done = Worked(next_item, time.monotonic() - began_s, median(took_ms))
        print(json.dumps(asdict(done)), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]).resolve())
