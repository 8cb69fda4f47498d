#!/bin/sh
# TorchServe starts this for each worker, in place of Python. -P: the folder that it starts in is an
# archive's, whose files must not stand in for Python's own.
exec "$PYTHON" -P -m vlserve_worker.worker "$@"
