"""What KServe's SDK is told by a V2 server, as JSON: run by a Python that has it.

``python kserve_questions.py URL MODEL IMAGE TEXT…``
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)


def request_of(model: str, image: bytes, texts: list[str], binary: bool) -> InferRequest:
    columns = {
        "image": [image if binary else base64.b64encode(image)] * len(texts),
        "text": [text.encode() for text in texts],
    }
    inputs = []
    for name, values in columns.items():
        inputs.append(InferInput(name, [len(values)], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=inputs, request_id="mine")


async def answers(url: str, model: str, image: bytes, texts: list[str]) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=0))
    report: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
    }
    for binary in (True, False):
        request = request_of(model, image, texts, binary)
        answer = await client.infer(url, request, model_name=model)
        report["binary" if binary else "json"] = _outputs(answer)
    return report


async def answers_by_grpc(url: str, model: str, image: bytes, texts: list[str]) -> dict[str, Any]:
    client = InferenceGRPCClient(url.removeprefix("http://"), timeout=60, retries=0)
    report: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
    }
    for raw in (True, False):
        request = request_of(model, image, texts, raw)
        report["raw" if raw else "contents"] = _outputs(await client.infer(request))
    await client.close()
    return report


def _outputs(answer: Any) -> dict[str, Any]:
    return {"id": answer.id} | {
        tensor.name: tensor.as_numpy().tolist() for tensor in answer.outputs
    }


if __name__ == "__main__":
    url, model, file, *texts = sys.argv[1:]
    arguments = model, Path(file).read_bytes(), texts
    rest = asyncio.run(answers(url, *arguments))
    grpc = asyncio.run(answers_by_grpc(url, *arguments))
    print(json.dumps({"rest": rest, "grpc": grpc}, default=lambda value: value.decode()))
