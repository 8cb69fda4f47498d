"""LitServe: multipart in; its own batching, worker processes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

sys.path.append(os.environ["BENCH_ANSWERING"])
from answering import BATCH_SIZE, DELAY_S, Answering


class Tagger(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.answer = Answering(Path(os.environ["BENCH_ARCHIVE"]))

    def decode_request(self, request: Request) -> tuple[bytes, bytes]:
        return request["image"].file.read(), request["text"].encode()

    def batch(self, inputs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return inputs

    def predict(self, inputs: list[tuple[bytes, bytes]]) -> list[bytes]:
        return self.answer(inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Any:
        return json.loads(output)


if __name__ == "__main__":
    tagger = Tagger(max_batch_size=BATCH_SIZE, batch_timeout=DELAY_S)
    workers, port = int(os.environ["BENCH_WORKERS"]), int(os.environ["BENCH_PORT"])
    server = litserve.LitServer(tagger, accelerator="cpu", workers_per_device=workers)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
