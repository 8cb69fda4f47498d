"""The indexed Job of serving_config: valid by Kubernetes' schema, its shards are one job."""

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from vlserve.cli import app

FILE = Path(__file__).parents[3] / "serving_config" / "kubernetes" / "batch_job.yaml"


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
