"""The service of BentoML. A batchable API takes a list, and a request's share of it is what it
sent: files cannot be among them, so images come as base64."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel

sys.path.append(os.environ["BENCH_ANSWERING"])
from answering import BATCH_SIZE, Answering


class Item(BaseModel):
    image: str
    text: str


@bentoml.service(
    workers=int(os.environ["BENCH_WORKERS"]),
    logging={"access": {"enabled": False}},
)
class Tagger:
    def __init__(self) -> None:
        self.answer = Answering(Path(os.environ["BENCH_ARCHIVE"]))

    @bentoml.api(batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=10_000)
    def tag(self, items: list[Item]) -> list[dict[str, Any]]:
        pairs = [(base64.b64decode(item.image), item.text.encode()) for item in items]
        return [json.loads(body) for body in self.answer(pairs)]
