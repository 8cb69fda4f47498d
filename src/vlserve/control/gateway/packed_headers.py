"""A client's headers in one, for adopted archives: engines get no other of them. Pure."""

from typing import Any

from vlserve.settings import Settings

Config = dict[str, Any]

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"


def packing_filters(settings: Settings) -> list[Config]:
    """Return the filters that pack them, to come before those that take them away."""
    script = {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{_HTTP}.lua.v3.Lua",
            "default_source_code": {"filename": str(settings.config_file("gateway/adopted.lua"))},
        },
    }
    return [_without_our_keys(), script] if settings.gateway.api_keys else [script]


def _without_our_keys() -> Config:
    """Take away the header that may hold a key of this gateway, which is no handler's."""
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": f"{_HTTP}.header_mutation.v3.HeaderMutation",
            "mutations": {"request_mutations": [{"remove": "authorization"}]},
        },
    }
