"""The filters that hand a client's headers to the handler of an adopted version. Pure."""

from vlserve.control.gateway.cluster_filters import (
    Config,
    engine_headers,
    header_changes,
    script,
    with_filters,
)
from vlserve.runtime import headers
from vlserve.settings import Settings


def own_filters(settings: Settings) -> Config:
    """Return what gives a cluster on TorchServe filters of its own: those of envoy.yaml, once the
    client's headers are packed."""
    return with_filters(*packing_filters(settings), _engines_words(settings), engine_headers({}))


def packing_filters(settings: Settings) -> list[Config]:
    """Return the filters that pack a client's headers into one, the only one of them that an engine
    gets; to come before those that take them away."""
    packer = script(settings, "adopted.lua")
    if not settings.gateway.api_keys:
        return [packer]
    # The header may hold a key of this gateway, which is no handler's.
    return [header_changes([{"remove": "authorization"}]), packer]


def _engines_words(settings: Settings) -> Config:
    """Make TorchServe's own words ours; what the handler said is marked, and stays."""
    mark = {
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
            "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": script(settings, "engine.lua"),
            "xds_matcher": {
                "matcher_list": {
                    "matchers": [{"predicate": {"single_predicate": mark}, "on_match": skip}]
                }
            },
        },
    }
