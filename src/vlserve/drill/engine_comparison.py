"""Ask both engines, and an archive's code without any, the same requests, and compare the answers.

Each engine runs in a stack of its own, one after the other; the stack that is up is not touched.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from vlserve.control.domain import EngineKind
from vlserve.drill.answer_comparison import ALONE, TOGETHER, Comparison, Response, compare
from vlserve.drill.own_archives import refuse_adopted
from vlserve.drill.release_watch import Show
from vlserve.errors import StressError
from vlserve.loadgen.bad_requests import bad_requests
from vlserve.loadgen.dataset_requests import RequestBody
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.manifest import Manifest
from vlserve.settings import Settings
from vlserve.testing.private_stack import on_one_engine, private_stack

KINDS: tuple[EngineKind, ...] = ("torchserve", "triton")
WITHOUT_ENGINE = "without engine"
GOOD = 60
"""How many requests are made of an archive's probes, beside the bad ones."""
CONNECTIONS = 16
_ID = "drill-engines"
_WITHOUT_ENGINE_S = 600.0

Answers = Mapping[str, Response]


@dataclass(frozen=True)
class EnginesResult:
    """What the comparison came to. engines.json holds the same."""

    model: str
    version: int
    requests: int
    comparisons: tuple[Comparison, ...]
    took_s: float
    passed: bool
    result: Path


def compare_engines(
    settings: Settings, archive: Path, folder: Path, show: Show, good: int = GOOD
) -> EnginesResult:
    """Compare the answers to an archive's requests on TorchServe, on Triton and without engine.

    Args:
        settings: The stacks share them but for folders, ports and gateway.
        archive: Its probes make the requests, good and bad.
        folder: Gets engines.json.
        show: Gets messages about the progress.
        good: How many good requests are made.

    Raises:
        StackError: Triton cannot run here, or a stack does not start.
        StressError: An answer does not come.
    """
    refuse_adopted(archive)
    stacks = {kind: on_one_engine(settings, kind) for kind in KINDS}
    began = time.monotonic()
    requests = _requests(archive, good)
    with tempfile.TemporaryDirectory(prefix="vlserve-engines-") as scratch:
        show(f"answering {len(requests)} requests without engine")
        archive_folder = Path(scratch) / "archive"
        manifest = unpack_archive(archive, archive_folder)
        references = _without_engine(archive_folder, manifest, requests, Path(scratch))
    answers = {
        kind: _on_engine(each, archive, manifest, requests, show) for kind, each in stacks.items()
    }
    comparisons = _compared(manifest, references, answers)
    result = EnginesResult(
        model=manifest.model,
        version=manifest.version,
        requests=len(requests),
        comparisons=comparisons,
        took_s=round(time.monotonic() - began, 1),
        passed=all(each.passed for each in comparisons),
        result=folder.resolve() / "engines.json",
    )
    result.result.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), default=str, ensure_ascii=False, indent=2)
    result.result.write_text(text + "\n", encoding="utf-8")
    return result


def _requests(archive: Path, good: int) -> dict[str, RequestBody]:
    bodies = vary_probes(archive, good, seed=1)
    return {f"good {number}": body for number, body in enumerate(bodies)} | bad_requests(archive)


def _compared(
    manifest: Manifest, references: Answers, answers: Mapping[EngineKind, tuple[Answers, Answers]]
) -> tuple[Comparison, ...]:
    together = None if _follows_its_batch(manifest) else TOGETHER
    (torchserve, _), (triton, _) = (answers[kind] for kind in KINDS)
    return (
        *(
            compare(f"{kind}, alone", answers[kind][0], WITHOUT_ENGINE, references, ALONE)
            for kind in KINDS
        ),
        compare("triton, alone", triton, "torchserve, alone", torchserve, ALONE),
        *(
            compare(
                f"{kind}, {CONNECTIONS} connections",
                answers[kind][1],
                WITHOUT_ENGINE,
                references,
                together,
            )
            for kind in KINDS
        ),
    )


def _follows_its_batch(manifest: Manifest) -> bool:
    """Return whether an answer depends on its neighbours: INT8 whose ranges are those of a run."""
    graphs = manifest.quantization.graphs.values() if manifest.quantization else ()
    return any(graph.method in ("dynamic", "mixed") for graph in graphs)


def _without_engine(
    folder: Path, manifest: Manifest, requests: Mapping[str, RequestBody], scratch: Path
) -> Answers:
    """Return what the archive's own code says in a process of its own, each request alone."""
    requests_file, answers_file = scratch / "requests.jsonl", scratch / "answers.jsonl"
    lines = (
        {
            "content_type": each.content_type,
            "body": base64.b64encode(each.body).decode("ascii"),
            "id": _ID,
        }
        for each in requests.values()
    )
    requests_file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "vlserve_worker.without_engine", str(folder)),
            *(str(manifest.version), str(requests_file), str(answers_file)),
        ],
        env=own | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=_WITHOUT_ENGINE_S,
        check=False,
    )
    if process.returncode:
        words = process.stderr.strip().splitlines()
        raise StressError(f"the archive's own code failed: {words[-1] if words else 'no word'}")
    answers = [json.loads(line) for line in answers_file.read_text(encoding="utf-8").splitlines()]
    return {
        name: _response(answer["status"], answer["body"])
        for name, answer in zip(requests, answers, strict=True)
    }


def _on_engine(
    settings: Settings,
    archive: Path,
    manifest: Manifest,
    requests: Mapping[str, RequestBody],
    show: Show,
) -> tuple[Answers, Answers]:
    """Return what an engine says to each request alone, and then to all at once."""
    kind = settings.engine.kind
    url = f"/predictions/{manifest.model}/{manifest.version}"
    with private_stack(settings, show) as own:
        own.control.register(archive)

        def ask(body: RequestBody) -> Response:
            return _ask(own.http, url, body)

        show(f"{kind}: {len(requests)} requests, one at a time")
        alone = {name: ask(body) for name, body in requests.items()}
        show(f"{kind}: the same at {CONNECTIONS} connections")
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            together = dict(zip(requests, pool.map(ask, requests.values()), strict=True))
    return alone, together


def _ask(http: httpx.Client, url: str, body: RequestBody) -> Response:
    headers = {"Content-Type": body.content_type, "X-Request-Id": _ID}
    try:
        response = http.post(url, content=body.body, headers=headers)
        return _response(response.status_code, response.json())
    except (httpx.HTTPError, ValueError) as error:
        raise StressError(f"{url} does not answer in JSON: {error!r}") from error


def _response(status: int, body: Mapping[str, object]) -> Response:
    """Return an answer without its request id, of which a refusal may have another."""
    return Response(status, {name: value for name, value in body.items() if name != "request_id"})
