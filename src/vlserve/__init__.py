"""vlserve: put trained image + text models into production."""

import os

# ONNX Runtime's official builds send what models they open to Microsoft, from 1.29 on also on Linux
# (Privacy.md in its package). Nothing of ours talks to the network; this is read at its import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
