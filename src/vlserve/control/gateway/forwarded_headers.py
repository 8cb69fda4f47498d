"""Which of a client's headers go on to engines."""

from vlserve.control.gateway.negated_match import negated_pattern
from vlserve.runtime import headers

FOR_ENGINES = (
    *(":method", ":path", ":authority", ":scheme"),
    *("content-type", "content-length", "transfer-encoding"),
    *(headers.REQUEST_ID, headers.SENT_CONTENT_TYPE, headers.SENT_CONTENT_ENCODING),
    *(headers.SENT_PATH, headers.PROTOCOL, headers.SENT_JSON_LENGTH, headers.SENT_HEADERS),
    *("traceparent", "tracestate"),
)
"""All that an engine needs of a client's headers; its token is added."""

NOT_FOR_ENGINES = negated_pattern((*FOR_ENGINES, headers.RETRIES))
"""Matches the name of every other header. What a try takes away, the next one lacks too, where
engine.lua and triton.lua read RETRIES again."""
