"""An offline job by a recorded archive: its frozen runtime knows nothing of the job's worker."""

import json
from pathlib import Path

from support.batch_rows import output, write_jsonl
from vlserve.batch.job import Options
from vlserve.batch.run import Crewing, run_batch
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.task import difference


def test_a_job_gives_the_probes_answers(project: Path, tmp_path: Path) -> None:
    archive = min((project / "model_store").rglob("*.mar"))
    probes = verify_archive(archive).probes
    rows = [{"id": f"p{place}", **probe.fields} for place, probe in enumerate(probes)]
    file = write_jsonl(tmp_path / "probes.jsonl", rows)
    report = run_batch(archive, [str(file)], tmp_path / "out", Options(), Crewing(workers=1))
    assert (report["rows"], report["failed"]) == (len(probes), 0), json.dumps(report)
    for row, probe in zip(output(tmp_path / "out"), probes, strict=True):
        assert difference(probe.answer, row) is None
