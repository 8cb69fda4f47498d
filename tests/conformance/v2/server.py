"""A V2 server, asked by what its own metadata say."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import httpx

LENGTH = "Inference-Header-Content-Length"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGM8ISfHwMDAxMDAwMDAAAAN"
    "BAEIfXHKZgAAAABJRU5ErkJggg=="
)
"""Two by two red pixels."""

Tensor = dict[str, Any]
"""As JSON has it: name, datatype, shape, and data or parameters."""


@dataclass(frozen=True)
class Server:
    """One model of it."""

    http: httpx.Client
    model: str

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the model says of itself."""
        body: dict[str, Any] = self.http.get(self.path).raise_for_status().json()
        return body

    def inputs(self, items: int = 1) -> list[Tensor]:
        """Inputs that the model takes: pictures where one is called image, else words and ones."""
        return [self._input(about, items) for about in self.metadata["inputs"]]

    def infer(self, request: dict[str, Any], path: str = "") -> httpx.Response:
        return self.http.post(f"{path or self.path}/infer", json=request)

    def infer_raw(
        self, request: dict[str, Any], raw: bytes, length: int | None = None
    ) -> httpx.Response:
        """Send bytes behind the JSON; ``length``: what is said of the JSON's."""
        head = json.dumps(request).encode()
        headers = {LENGTH: str(len(head) if length is None else length)}
        return self.http.post(f"{self.path}/infer", content=head + raw, headers=headers)

    def _input(self, about: dict[str, Any], items: int) -> Tensor:
        first, *others = (int(dim) for dim in about["shape"])
        shape = [items if first == -1 else first, *(max(dim, 1) for dim in others)]
        count = prod(shape)
        value: Any = 1
        if about["datatype"] == "BYTES":
            value = PNG if about["name"].startswith("image") else "a cat"
        elif about["datatype"] == "BOOL":
            value = True
        return {
            "name": about["name"],
            "datatype": about["datatype"],
            "shape": shape,
            "data": [value] * count,
        }


def outputs_of(response: httpx.Response) -> dict[str, Tensor]:
    """Return the outputs of an answer by name, with the bytes behind the JSON as data."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    at = len(response.content) if length is None else int(length)
    body = json.loads(response.content[:at])
    outputs = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            output["data"] = unpacked(output["datatype"], response.content[at : at + size])
            at += size
        outputs[output["name"]] = output
    assert at == len(response.content)
    return outputs


FORMATS = {
    **{"BOOL": "?", "INT8": "b", "UINT8": "B", "INT16": "h", "UINT16": "H", "FP16": "e"},
    **{"INT32": "i", "UINT32": "I", "INT64": "q", "UINT64": "Q", "FP32": "f", "FP64": "d"},
}


def packed(tensor: Tensor) -> bytes:
    """Return a tensor's data as the binary data extension has them."""
    data: Sequence[Any] = tensor["data"]
    if tensor["datatype"] != "BYTES":
        return struct.pack(f"<{len(data)}{FORMATS[tensor['datatype']]}", *data)
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)


def unpacked(datatype: str, raw: bytes) -> list[Any]:
    """Return the data of bytes."""
    if datatype != "BYTES":
        kind = FORMATS[datatype]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw))
    elements, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        elements.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return elements
