#!/bin/sh
# TorchServe starts this for each worker, in place of Python.
exec "$PYTHON" "$TORCHSERVE_CONFIG/worker.py" "$@"
