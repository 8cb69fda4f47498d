"""What every load run needs to know."""

from dataclasses import dataclass, field
from pathlib import Path

API_KEY_VARIABLE = "VLSERVE_STRESS_API_KEY"
"""Environment variable with the API key: every user can read the options of a process."""


LEAST_SHARE_SENT = 0.5
"""Of the requests that a rate asks for: a run that sent fewer has shown nothing."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Requests to ``{url}/predictions/{model}``."""

    url: str
    model: str
    data: Path | None = None
    """Dataset of the requests: JSON lines ``{"id", "img", "text"}``, images relative to the
    file."""
    archive: Path | None = None
    """Archive whose probes, varied, are the requests, where there is no dataset; for any task.
    Neither: the demo set."""
    api_key: str = field(default="", repr=False)
    timeout_s: int = 35
    """Time limit of a request. Above the gateway's own limit."""
