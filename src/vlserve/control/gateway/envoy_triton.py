"""What prepares a request for Triton, and makes an HTTP answer of what Triton says. Pure."""

from vlserve.control.gateway.cluster_filters import Config, engine_headers, script, with_filters
from vlserve.control.gateway.envoy_adopted import packing_filters
from vlserve.settings import Settings

_ALL_IS_INPUT = {"inference-header-content-length": "0"}
"""Says that the whole body is the one input."""


def infer_path(model: str, version: int) -> str:
    """Return the path of predictions: each version is a model of Triton's own."""
    return f"/v2/models/{model}-{version}/infer"


def own_filters(settings: Settings, adopted: bool) -> Config:
    """Return what gives a cluster filters of its own. The script comes before the headers, which
    take away the number of the try. ``adopted``: whether the client's own headers go along,
    packed."""
    packers = packing_filters(settings) if adopted else []
    return with_filters(*packers, script(settings, "triton.lua"), engine_headers(_ALL_IS_INPUT))
