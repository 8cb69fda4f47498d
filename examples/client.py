"""A Python client of a served model. It needs httpx and nothing of vlserve.

    python examples/client.py tagger --image cover.jpg --text 'How to get started'

The key for a gateway that asks for one is read from VLSERVE_API_KEY.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

TRIES = 3
LONGEST_WAIT_S = 5.0


class Refused(Exception):
    """The server answered with an error; ``code`` is one of docs/reference/errors.md."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


def predict(
    client: httpx.Client,
    model: str,
    fields: Mapping[str, str],
    files: Mapping[str, Path],
    caller: str | None = None,
) -> dict[str, Any]:
    """Ask a model about one item and return its answer.

    A 503 says that another try can help, and after how many seconds: it is sent again.

    Args:
        client: with the gateway's address as its base_url.
        model: name of the model; the gateway chooses the version.
        fields: the request's text fields, as text or top_k.
        files: its files by field, as image or features.
        caller: the sticky key: during a rollout a caller stays on one version.

    Raises:
        Refused: the server cannot answer this request.
    """
    parts = {name: (file.name, file.read_bytes()) for name, file in files.items()}
    headers = {"X-Sticky-Key": caller} if caller else {}
    for attempt in range(1, TRIES + 1):
        response = client.post(
            f"/predictions/{model}", data=dict(fields), files=parts or None, headers=headers
        )
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or attempt == TRIES:
            break
        time.sleep(min(float(response.headers.get("Retry-After", 1)), LONGEST_WAIT_S))
    if response.is_error:
        error = response.json()["error"]
        raise Refused(response.status_code, error["code"], error["message"])
    return dict(response.json())


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a served model about one item.")
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--image", type=Path, help="image file")
    parser.add_argument("--text", help="title, question, phrase or caption")
    parser.add_argument("--url", default="http://localhost:8080", help="address of the gateway")
    options = parser.parse_args()
    fields = {"text": options.text} if options.text else {}
    files = {"image": options.image} if options.image else {}
    headers = {"X-Api-Key": key} if (key := os.environ.get("VLSERVE_API_KEY")) else {}
    with httpx.Client(base_url=options.url, headers=headers, timeout=35) as client:
        answer = predict(client, options.model, fields, files)
    print(json.dumps(answer, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
