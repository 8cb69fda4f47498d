"""One way to write a request: a row of docs/reference/request-forms.md, with its bytes."""

import base64
from dataclasses import dataclass, field

from support.request_bodies import JPEG

TEXT = "cat cover"
CHINESE = "可爱的猫咪"
JSON = "application/json"
URLENCODED = "application/x-www-form-urlencoded"
B64 = base64.b64encode(JPEG).decode()
LINES = base64.encodebytes(JPEG).decode()
READ = "read"


@dataclass(frozen=True)
class Variant:
    """One row: what is sent, by whom, and ``outcome``, READ or the sentence of the refusal."""

    sent: str
    by: str
    outcome: str
    body: bytes = field(repr=False)
    content_type: str | None = None
    encoding: str = ""
    query: tuple[tuple[str, bytes], ...] = ()
    code: str = "body_unreadable"
    text: str = TEXT

    @property
    def row(self) -> str:
        """Return the row of the page."""
        outcome = self.outcome if self.outcome == READ else f"`{self.code}`: {self.outcome}"
        return f"| {self.sent} | {self.by} | {outcome} |"
