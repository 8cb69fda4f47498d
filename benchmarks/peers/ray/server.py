"""Ray Serve: multipart in; its batching, replicas."""

import os
import sys
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # else it leaves a token in the user's home
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

WORKERS, PORT = int(os.environ["BENCH_WORKERS"]), int(os.environ["BENCH_PORT"])


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Tagger:
    def __init__(self) -> None:
        # a replica gets this class by value, and has a path of its own
        sys.path.append(os.environ["BENCH_ANSWERING"])
        from answering import Answering

        self.answer = Answering(Path(os.environ["BENCH_ARCHIVE"]))

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.001)
    async def tag(self, items: list[tuple[bytes, bytes]]) -> list[bytes]:
        return self.answer(items)

    async def __call__(self, request: Request) -> Response:
        form = await request.form()
        item = (await form["image"].read(), form["text"].encode())
        return Response(await self.tag(item), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS + 2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Tagger.bind(), route_prefix="/tag")
    while True:
        time.sleep(60)
