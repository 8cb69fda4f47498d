#!/bin/sh
# TorchServe starts this for each worker, in place of Python. -P: the folder that it starts in is an
# archive's, whose files must not stand in for Python's own.
# A request that would take all memory gets an error from the allocator instead, in KiB.
ulimit -d "$((${WORKER_MEMORY_MIB:-8192} * 1024))"
exec "$PYTHON" -P -m vlserve_worker.worker "$@"
