"""The names of the HTTP headers that clients, the gateway, workers and handlers agree on.

They never change: archives in stores carry the handler of their time. HTTP does not tell upper and
lower case apart; Envoy and TorchServe want lower case. What cannot import this module (the worker
program, serving_config/gateway/, the files in loadtest/) is held to it by a test.
"""

REQUEST_ID = "x-request-id"
"""Client -> gateway -> engine, and back: the request's name in every log."""
STICKY_KEY = "x-sticky-key"
"""Client -> gateway: the caller, who stays on one version while two have weight."""
MODEL_VERSION = "x-model-version"
"""Client -> gateway: the version asked for; gateway -> client: the version that answered."""
API_KEY = "x-api-key"
"""Client -> gateway: one of `gateway.api_keys`, where there are some."""

OURS = "x-vlserve-"
"""The headers that begin so pass between our own processes: the gateway takes them away from what
clients send."""
ANSWERED_BY = "x-vlserve-version"
"""Handler -> gateway: the version, on every answer that is not TorchServe's own."""
SENT_CONTENT_TYPE = "x-vlserve-content-type"
"""Gateway -> worker: the content type that the client sent; TorchServe is told of plain bytes."""
SENT_CONTENT_ENCODING = "x-vlserve-content-encoding"
"""Gateway -> worker: how the client packed the body (gzip); TorchServe is not told, and leaves the
bytes as they are."""
SENT_PATH = "x-vlserve-path"
"""Gateway -> worker: the path that the client asked for, with its query, which TorchServe drops."""
PROTOCOL = "x-vlserve-protocol"
"""Gateway -> worker: the protocol of a request that is no plain one, as v2."""
SENT_JSON_LENGTH = "x-vlserve-json-length"
"""Gateway -> worker: the client's Inference-Header-Content-Length, which a request to Triton has of
its own."""
SENT_HEADERS = "x-vlserve-headers"
"""Gateway -> worker of an adopted archive: all other headers of the client, packed into one."""
SENT_REQUEST_ID = "x-vlserve-sent-request-id"
"""In the gateway: the client's X-Request-Id until it is known to be one short word."""
RETRY = "x-vlserve-retry"
"""In the gateway: on an engine's reply after which another try can help."""
RETRIES = "x-vlserve-retries"
"""In the gateway: how often a request is sent again, but for what met a dead worker of Triton."""
RETRY_AFTER = "x-vlserve-retry-after"
"""In the gateway: beside RETRY, seconds to wait before that try."""
SHADOW = "x-vlserve-shadow"
"""Gateway -> its shadow listener: the cluster that a copy goes to."""
STEP = "x-vlserve-step"
"""Gateway -> its shadow listener: the rollout's step that a copy belongs to."""
CALL = "x-vlserve-call"
"""In the gateway: on a gRPC call whose message has been read; the method's name."""
