"""An environment that holds the built wheel, and how its commands are run."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and a folder to run its commands in."""

    environment: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def run(
        self, words: Sequence[str | Path], folder: Path | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment without a variable of ours; ``folder``: where."""
        base = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VLSERVE_", "PYTHON", "COV_"))
        }
        program, *arguments = (str(word) for word in words)
        return subprocess.run(
            [str(self.environment / "bin" / program), *arguments],
            cwd=folder or self.folder,
            env=base | dict(self.variables),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            encoding="utf-8",
        )

    def output(
        self, words: Sequence[str | Path], folder: Path | None = None, timeout_s: float = 120
    ) -> str:
        """Return what a command prints; fail the test when it ends with another code than 0."""
        process = self.run(words, folder, timeout_s)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout
