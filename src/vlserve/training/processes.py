"""Start a run of several processes on this machine, by torchrun."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from vlserve.errors import TrainingError
from vlserve.processor import usable_cores

RESTARTS = 3
"""Times that all processes are started again after one of them ended; they go on after the last
state that was kept."""
LOOPBACK = "lo"


def train_in_processes(count: int, words: Sequence[str]) -> None:
    """Run ``python -m vlserve.training`` with ``words`` in ``count`` processes until they end.

    Raises KeyboardInterrupt after Ctrl-C, once they ended after their step, and TrainingError where
    they failed.
    """
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", f"--max-restarts={RESTARTS}"]
    command += ["--module", "vlserve.training", *words]
    # a session of its own: Ctrl-C comes by us, and not to each process at once
    with subprocess.Popen(command, env=environment(count), start_new_session=True) as process:
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code:
        raise TrainingError(f"training in {count} processes failed, see above (exit code {code})")


def environment(count: int) -> dict[str, str]:
    """Return variables of a run's processes: threads of each, talk over the loopback alone, and a
    store of addresses for each start. torchrun keeps one for all starts, where processes that are
    started again find the addresses of those before, and may wait for them for ever."""
    threads = str(max(usable_cores() // count, 1))
    own = {"OMP_NUM_THREADS": threads, "PYTHONSAFEPATH": "1"}  # as -P, of the ranks too
    own["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if LOOPBACK in {name for _, name in socket.if_nameindex()}:
        own["GLOO_SOCKET_IFNAME"] = LOOPBACK
    return {**own, **os.environ}
