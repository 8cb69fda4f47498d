"""Programs of workers: TorchServe's, and those of an offline job.

Not inside vlserve: a serving process holds one vlserve, the archive's.
"""

import os

# As in vlserve/__init__.py, for archives whose frozen runtime is older than that line.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
