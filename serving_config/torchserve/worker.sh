#!/bin/sh
# TorchServe starts this for each worker, in place of Python.

# An image is larger than what glibc keeps by default: each would be given back to the kernel, and
# taken again page by page for the next one (475 page faults a cover, a sixth of its decoding).
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=134217728

exec "$PYTHON" "$TORCHSERVE_CONFIG/worker.py" "$@"
