"""MLServer: the Open Inference Protocol's JSON in; its adaptive batching, parallel workers."""

import json
import os
import shutil
import sys
from pathlib import Path

WORKERS, PORT = int(os.environ["BENCH_WORKERS"]), int(os.environ["BENCH_PORT"])
SETTINGS = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": PORT,
    "grpc_port": PORT + 1,
    "metrics_port": PORT + 2,
    "metrics_endpoint": None,
    "parallel_workers": WORKERS,
    "use_structured_logging": False,
    "environments_dir": str(Path("environments").resolve()),
}


def main() -> None:
    sys.path.append(os.environ["BENCH_ANSWERING"])
    from answering import BATCH_SIZE, DELAY_S

    model = {
        "name": "tagger",
        "implementation": "tagger.Tagger",
        "max_batch_size": BATCH_SIZE,
        "max_batch_time": DELAY_S,
    }
    Path("settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    Path("model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("tagger.py"), ".")
    program = Path(sys.executable).with_name("mlserver")
    os.execv(program, [str(program), "start", "."])


if __name__ == "__main__":
    main()
