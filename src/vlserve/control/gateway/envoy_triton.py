"""What prepares a request for Triton, and makes an HTTP answer of what Triton says. Pure.

TorchServe's like is in serving_config/gateway/envoy.yaml, for all clusters that have nothing of
their own.
"""

from typing import Any

from vlserve.control.gateway.forwarded_headers import NOT_FOR_ENGINES
from vlserve.control.gateway.packed_headers import packing_filters
from vlserve.settings import Settings

Config = dict[str, Any]

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"


def infer_path(model: str, version: int) -> str:
    """Return the path of predictions: each version is a model of Triton's own."""
    return f"/v2/models/{model}-{version}/infer"


def own_filters(settings: Settings, adopted: bool) -> Config:
    """Return what gives a cluster filters of its own. They run once a try, when the instance is
    chosen; what it answers meets them in the opposite order. The script comes first, because the
    other one takes away the number of the try. ``adopted``: whether the client's own headers go
    along, packed."""
    packing = packing_filters(settings) if adopted else []
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "http_filters": [*packing, _script(settings), _headers(), _codec()],
    }
    return {
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    }


def _headers() -> Config:
    """Say that the whole body is the one input, of no type, and how long the engine took."""
    set_ = "OVERWRITE_IF_EXISTS_OR_ADD"
    added = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": "0",
        "authorization": "Bearer %UPSTREAM_METADATA(vlserve:token)%",
    }
    others = {"key_matcher": {"safe_regex": {"regex": NOT_FOR_ENGINES}}}
    took = "engine;dur=%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%e-3"
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": f"{_HTTP}.header_mutation.v3.HeaderMutation",
            "mutations": {
                "request_mutations": [
                    {"remove_on_match": others},
                    *(
                        {"append": {"header": {"key": key, "value": value}, "append_action": set_}}
                        for key, value in added.items()
                    ),
                ],
                "response_mutations": [
                    {
                        "append": {
                            "header": {"key": "server-timing", "value": took},
                            "append_action": "APPEND_IF_EXISTS_OR_ADD",
                        }
                    }
                ],
            },
        },
    }


def _script(settings: Settings) -> Config:
    file = settings.config_file("gateway/triton.lua")
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{_HTTP}.lua.v3.Lua",
            "default_source_code": {"filename": str(file)},
        },
    }


def _codec() -> Config:
    return {
        "name": "envoy.filters.http.upstream_codec",
        "typed_config": {"@type": f"{_HTTP}.upstream_codec.v3.UpstreamCodec"},
    }
