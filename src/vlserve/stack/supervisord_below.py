"""supervisord in the foreground, for as long as the process lives that started it:

python -m vlserve.stack.supervisord_below PARENT_PID CONFIGURATION
"""

import ctypes
import os
import signal
import sys

from supervisor import supervisord

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent of this process ends; exit where it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which started supervisord, has ended")


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    supervisord.main(["--nodaemon", "--silent", "-c", sys.argv[2]])
