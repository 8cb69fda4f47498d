"""What V2 says of a server and of its models, as the messages of gRPC. Pure."""

from collections.abc import Mapping
from typing import Any

from vlserve_worker.v2.protobuf_wire import write_integer, write_octets, write_text, write_varint

YES = write_integer(1, 1)
"""ServerLiveResponse, ServerReadyResponse and ModelReadyResponse that say so."""
NO = b""
"""The same that say no, which is what a message without the field says."""


def server_metadata_response(about: Mapping[str, Any]) -> bytes:
    """Write what ``v2_metadata.server_metadata`` returns."""
    extensions = b"".join(write_text(3, name) for name in about["extensions"])
    return write_text(1, about["name"]) + write_text(2, about["version"]) + extensions


def model_metadata_response(about: Mapping[str, Any]) -> bytes:
    """Write what ``v2_metadata.model_metadata`` returns."""
    return b"".join(
        (
            write_text(1, about["name"]),
            *(write_text(2, version) for version in about["versions"]),
            write_text(3, about["platform"]),
            *(write_octets(4, _tensor(tensor)) for tensor in about["inputs"]),
            *(write_octets(5, _tensor(tensor)) for tensor in about["outputs"]),
        )
    )


def _tensor(about: Mapping[str, Any]) -> bytes:
    shape = b"".join(map(write_varint, about["shape"]))
    return write_text(1, about["name"]) + write_text(2, about["datatype"]) + write_octets(3, shape)
