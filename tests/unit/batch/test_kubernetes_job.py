"""The indexed Job of serving_config: valid by Kubernetes' schema, its shards are one job."""

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from support.dockerfile import instructions
from vlserve.batch.sources import COMPRESSIONS, Kind, kind_of
from vlserve.cli import app
from vlserve.extras import MODULES

FILE = Path(__file__).parents[3] / "serving_config" / "kubernetes" / "batch_job.yaml"

ROOT = FILE.parents[2]


@pytest.fixture
def job() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return manifest


def test_the_job_is_valid(job: dict[str, Any]) -> None:
    kubernetes_validate.validate(job, "1.37", strict=True)


def test_a_pod_answers_each_shard(job: dict[str, Any]) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    shard = re.search(r'--shard "\$JOB_COMPLETION_INDEX/(\d+)"', script)
    assert shard and int(shard[1]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    words = shlex.split(script.removeprefix("exec vlserve ").replace("$JOB_COMPLETION_INDEX", "3"))
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output


def packages_of(target: str) -> set[str]:
    """What pip installs into an image, by the lock files that its Dockerfile makes and reads."""
    runs = " && ".join(rest for word, rest in instructions(target) if word == "RUN")
    made = {
        file: (pattern, source)
        for pattern, source, file in re.findall(r"grep -E '(.+?)' (\S+) > (\S+)", runs)
    }
    packages: set[str] = set()
    for file in re.findall(r"--require-hashes -r (\S+)", runs):
        pattern, source = made.get(file, ("^[a-z]", file.replace("serving.", "requirements.")))
        lines = (ROOT / source).read_text(encoding="utf-8").partition("# Besides, ")[0]
        packages |= {
            line.partition("==")[0] for line in lines.splitlines() if re.search(pattern, line)
        }
    return packages


def test_the_image_has_what_the_input_needs(job: dict[str, Any]) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = shlex.split(container["args"][0])
    inputs = [Path(words[place + 1]) for place, word in enumerate(words) if word == "--input"]
    needed = set(MODULES["cpu"])
    if any(kind_of(path) is Kind.PARQUET or path.suffix in COMPRESSIONS for path in inputs):
        needed |= set(MODULES["batch"])
    target = container["image"].partition(":")[0].removeprefix("vlserve-")
    assert inputs and needed <= packages_of(target)
