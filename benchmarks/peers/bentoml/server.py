"""BentoML: JSON in; its adaptive batching, worker processes."""

import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(sys.executable).with_name("bentoml")
    folder = str(Path(__file__).parent)
    command = [str(program), "serve", "tagger:Tagger", "--working-dir", folder]
    command += ["--host", "127.0.0.1", "--port", os.environ["BENCH_PORT"]]
    os.environ["BENTOML_HOME"] = str(Path("bentoml").resolve())
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.execv(program, command)


if __name__ == "__main__":
    main()
