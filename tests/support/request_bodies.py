"""Bodies of requests to a tagger: good ones, and good ones with something changed."""

import base64
import json
from typing import Any

from support.raw_http import Case, form
from vlserve.exporter.probes import drawn_image

IMAGE = drawn_image(0)
"""A JPEG, as base64."""
JPEG = base64.b64decode(IMAGE)
PNG = base64.b64decode(drawn_image(1))
TEXT = "cute cat 可爱的猫咪"

BOUNDARY = "7d9c1b"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"

GOOD_FORM = form(BOUNDARY, {"image": JPEG, "text": TEXT.encode()})
GOOD_JSON = json.dumps({"image": IMAGE, "text": TEXT}).encode()


def as_form(name: str, status: int, code: str, **fields: bytes) -> Case:
    """A form that is good but for these fields."""
    body = form(BOUNDARY, {"image": JPEG, "text": TEXT.encode()} | fields)
    return Case(name, status, code, body=body, content_type=FORM)


def as_json(name: str, status: int, code: str, **fields: Any) -> Case:
    """A JSON body that is good but for these fields."""
    body = json.dumps({"image": IMAGE, "text": TEXT} | fields).encode()
    return Case(name, status, code, body=body, content_type=JSON)
