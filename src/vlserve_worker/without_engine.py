"""Answers requests one at a time as a worker of an engine does, without an engine.

``PYTHONPATH=FOLDER python -P -m vlserve_worker.without_engine FOLDER VERSION REQUESTS ANSWERS``
with an unpacked archive in FOLDER. REQUESTS and ANSWERS are files of JSON lines, because the
archive's code may print: ``{"content_type", "body" (base64), "id"}`` and ``{"status", "body"}``.
"""

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve_worker.bodies import SENT_TYPE
from vlserve_worker.entry_point import entry_point
from vlserve_worker.image_limits import bounds_images
from vlserve_worker.request_filter import MAX_BODY_BYTES, Refusal, RequestFilter


def _answered(archive: Any, reads: RequestFilter, line: Mapping[str, str]) -> dict[str, Any]:
    request: dict[str, Any] = {
        "headers": [{"name": SENT_TYPE, "value": line["content_type"].encode()}],
        "parameters": [{"name": "body", "value": bytearray(base64.b64decode(line["body"]))}],
    }
    (result,) = reads.read_batch([request])
    if isinstance(result, Refusal):
        return {"status": result.status, "body": json.loads(result.body(line["id"]))}
    values = {parameter["name"]: parameter["value"] for parameter in request["parameters"]}
    ((status, _, body),) = archive.answer([values], [line["id"]])
    return {"status": status, "body": json.loads(body)}


def main(folder: Path, version: int, requests: Path, answers: Path) -> None:
    """Answer every line of ``requests`` by the archive in ``folder``."""
    archive = entry_point(folder)(folder, 1, 1, None)
    reads = RequestFilter(
        version, notes=None, max_body_bytes=MAX_BODY_BYTES, checks_images=not bounds_images(folder)
    )
    with (
        requests.open(encoding="utf-8") as lines,
        answers.open("w", encoding="utf-8") as out,
    ):
        for line in lines:
            out.write(json.dumps(_answered(archive, reads, json.loads(line))) + "\n")
    archive.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
