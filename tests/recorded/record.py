"""Record what today's code leaves on disk, for the tests that read it with later code.

`python tests/recorded/record.py version-0.1.0` runs a stack of its own on free loopback ports for
about half a minute and writes tests/recorded/version-0.1.0/ (README.md says what is in it). A
recording of a released version is never written again.
"""

import argparse
import gzip
import io
import sys
import tarfile
import tempfile
from pathlib import Path

import httpx

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from support.running_stack import make_settings, wait_until  # noqa: E402
from vlserve.control.client import ControlClient  # noqa: E402
from vlserve.control.tuning import Measured, Serving, Tuning, tuning_file  # noqa: E402
from vlserve.exporter.echo import pack_echo  # noqa: E402
from vlserve.runtime.archive import file_sha256, verify_archive  # noqa: E402
from vlserve.testing import RunningStack, running_stack  # noqa: E402

STAYS = {"weights": [25, 100], "hold_s": 3600}
CHANGES = {"tagger": STAYS, "banner": STAYS | {"shadow_percent": 50}}
REQUESTS = 60
KEPT = ("model_store/**/*.mar", "model_store/ledger.sqlite", ".vlserve/logs/*.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("name", help="name of the folder that is written here")
    target = FOLDER / parser.parse_args().name
    target.mkdir()  # never over another recording
    with tempfile.TemporaryDirectory(prefix="vlserve-record-") as scratch:
        project, archive_folder = Path(scratch) / "project", Path(scratch) / "packed"
        with running_stack(make_settings(project)) as stack:
            serve(stack, archive_folder)
        write_stack(project, target / "stack.tar.gz")
        tuning = write_tuning(archive_folder / "tagger-1.mar")
        (target / tuning.name).write_bytes(tuning.read_bytes())


def serve(stack: RunningStack, folder: Path) -> None:
    """Register two archives of each model, begin a rollout, and send requests."""
    for model, changes in CHANGES.items():
        archives = [pack_echo(folder, model, version) for version in (1, 2)]
        for archive in archives:
            stack.control.register(archive)
        stack.control.release(model, 1)
        stack.control.start_rollout(model, 2, changes)
        send(stack.http, model, archives[0])
    for model in CHANGES:
        wait_until(lambda model=model: is_counted(stack.control, model), timeout_s=60.0)


def send(http: httpx.Client, model: str, archive: Path) -> None:
    """Send the archive's probes in turn, every second one with a key, and one that is refused."""
    probes = verify_archive(archive).probes
    for number in range(REQUESTS):
        key = {"X-Sticky-Key": f"k{number // 2}"} if number % 2 == 0 else {}
        fields = probes[number % len(probes)].fields
        http.post(f"/predictions/{model}", json=fields, headers=key).raise_for_status()
    answer = http.post(f"/predictions/{model}", json={"top_k": "x"})
    assert answer.status_code == 422, answer.text


def is_counted(control: ControlClient, model: str) -> bool:
    """Whether the judge has seen every request, and has said something of it."""
    view = control.rollout(model)
    windows = view.windows
    requests = sum(window.candidate.requests + window.stable.requests for window in windows)
    pairs = sum(window.pairs for window in windows)
    return requests >= REQUESTS and view.decision is not None and (model == "tagger" or pairs > 20)


def write_stack(project: Path, file: Path) -> None:
    """Pack the model store and the logs, with no trace of when and by whom."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(path for kind in KEPT for path in project.glob(kind)):
            member = tarfile.TarInfo(path.relative_to(project).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)
    file.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))


def write_tuning(archive: Path) -> Path:
    """Write what `vlserve tune` writes beside an archive, without measuring."""
    tuning = Tuning(
        archive_sha256=file_sha256(archive),
        serving=Serving(workers=1, threads=2, batch_size=4, max_batch_delay_ms=2),
        slo_p99_ms=250.0,
        measured=Measured(connections=8, rps=101.5, p50_ms=70.2, p99_ms=120.9),
        machine="2 x Intel Xeon",
        tuned_at="2026-11-29T07:43:00.000+00:00",
    )
    file = tuning_file(archive)
    file.write_text(tuning.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
