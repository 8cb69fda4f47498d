"""The filters that hand a client's headers to the handler of an adopted version. Pure."""

from typing import Any

from vlserve.control.gateway.forwarded_headers import NOT_FOR_ENGINES
from vlserve.control.gateway.packed_headers import packing_filters
from vlserve.runtime import headers
from vlserve.settings import Settings

Config = dict[str, Any]

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_COMMON = "type.googleapis.com/envoy.extensions.common.matching.v3"


def own_filters(settings: Settings) -> Config:
    """Return what gives a cluster on TorchServe filters of its own: those of envoy.yaml, once the
    client's headers are packed."""
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "http_filters": [
            *packing_filters(settings),
            _engines_words(settings),
            _headers(),
            {
                "name": "envoy.filters.http.upstream_codec",
                "typed_config": {"@type": f"{_HTTP}.upstream_codec.v3.UpstreamCodec"},
            },
        ],
    }
    return {
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    }


def _engines_words(settings: Settings) -> Config:
    """Make TorchServe's own words ours; what the handler said is marked, and stays."""
    script = {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{_HTTP}.lua.v3.Lua",
            "default_source_code": {"filename": str(settings.config_file("gateway/engine.lua"))},
        },
    }
    marked = {
        "input": {
            "name": "marked",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpResponseHeaderMatchInput",
                "header_name": headers.ANSWERED_BY,
            },
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
    }
    skip = {
        "action": {
            "name": "skip",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3"
                ".SkipFilter"
            },
        }
    }
    return {
        "name": "envoy.filters.http.match_delegate",
        "typed_config": {
            "@type": f"{_COMMON}.ExtensionWithMatcher",
            "extension_config": script,
            "xds_matcher": {
                "matcher_list": {
                    "matchers": [{"predicate": {"single_predicate": marked}, "on_match": skip}]
                }
            },
        },
    }


def _headers() -> Config:
    """Say that the body is plain bytes, leave out the client's headers, add the token; and say how
    long the engine took."""
    set_ = "OVERWRITE_IF_EXISTS_OR_ADD"
    kind = {"key": "content-type", "value": "application/octet-stream"}
    token = {"key": "authorization", "value": "Bearer %UPSTREAM_METADATA(vlserve:token)%"}
    took = {
        "key": "server-timing",
        "value": "engine;dur=%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%e-3",
    }
    left_out = {"key_matcher": {"safe_regex": {"regex": NOT_FOR_ENGINES}}}
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": f"{_HTTP}.header_mutation.v3.HeaderMutation",
            "mutations": {
                "request_mutations": [
                    {"append": {"header": kind, "append_action": set_}},
                    {"remove_on_match": left_out},
                    {"append": {"header": token, "append_action": set_}},
                ],
                "response_mutations": [
                    {"append": {"header": took, "append_action": "APPEND_IF_EXISTS_OR_ADD"}}
                ],
            },
        },
    }
