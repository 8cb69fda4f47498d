"""A cluster's own filters, which prepare each try for its engine and read what that says. Pure.

A cluster that has none of its own has those of serving_config/gateway/envoy.yaml, for TorchServe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlserve.control.gateway.forwarded_headers import NOT_FOR_ENGINES
from vlserve.settings import Settings

Config = dict[str, Any]

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CODEC: Config = {
    "name": "envoy.filters.http.upstream_codec",
    "typed_config": {"@type": f"{_HTTP}.upstream_codec.v3.UpstreamCodec"},
}
_TOKEN = "Bearer %UPSTREAM_METADATA(vlserve:token)%"
_TOOK = "engine;dur=%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%e-3"


def with_filters(*filters: Config) -> Config:
    """Return what gives a cluster these filters. They run once a try, when the instance is chosen;
    what it answers meets them in the opposite order."""
    options = {
        "@type": f"type.googleapis.com/{_OPTIONS}",
        "explicit_http_config": {"http_protocol_options": {}},
        "http_filters": [*filters, _CODEC],
    }
    return {"typed_extension_protocol_options": {_OPTIONS: options}}


def script(settings: Settings, name: str) -> Config:
    """Return the filter that runs a script of serving_config/gateway/."""
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{_HTTP}.lua.v3.Lua",
            "default_source_code": {"filename": str(settings.config_file(f"gateway/{name}"))},
        },
    }


def engine_headers(more: Mapping[str, str]) -> Config:
    """Leave out the client's headers, say that the body is plain bytes, and add the engine's token
    and ``more``; to the answer add how long the engine took."""
    additions = {"content-type": "application/octet-stream", "authorization": _TOKEN, **more}
    others = {"key_matcher": {"safe_regex": {"regex": NOT_FOR_ENGINES}}}
    return header_changes(
        [
            {"remove_on_match": others},
            *(
                _append(name, value, "OVERWRITE_IF_EXISTS_OR_ADD")
                for name, value in additions.items()
            ),
        ],
        [_append("server-timing", _TOOK, "APPEND_IF_EXISTS_OR_ADD")],
    )


def header_changes(request: Sequence[Config], response: Sequence[Config] = ()) -> Config:
    """Return the filter that changes the headers of a request and of its answer."""
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": f"{_HTTP}.header_mutation.v3.HeaderMutation",
            "mutations": {"request_mutations": request, "response_mutations": response},
        },
    }


def _append(name: str, value: str, action: str) -> Config:
    return {"append": {"header": {"key": name, "value": value}, "append_action": action}}
