"""What all users of one Locust process share: the bodies to send, the clock, and the record."""

import os
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import IO

from vlserve.loadgen.dataset_requests import RequestBody, read_dataset
from vlserve.loadgen.exchange_requests import exchange_bodies
from vlserve.loadgen.load_plan import API_KEY_VARIABLE
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.loadgen.request_record import RequestRecord
from vlserve.training.demo_data import write_demo_data

DEMO_ITEMS = 60


class LoadSession:
    """One run, as one process of Locust sees it."""

    def __init__(self, options: Namespace, body_count: int, *, is_worker: bool) -> None:
        """Prepare the bodies and open the record.

        Args:
            options: Locust's, with those of `add_load_options`.
            body_count: How many different bodies are made of an archive's probes.
            is_worker: Whether another process (Locust's master) empties the record.
        """
        self.options = options
        exchanges = exchange_bodies(Path(options.archive)) if options.archive else ()
        self.is_raw = bool(exchanges)
        """Whether answers may be of any form."""
        self.bodies = exchanges or _request_bodies(options, body_count)
        self.api_key = os.environ.get(API_KEY_VARIABLE, "")
        self._started = time.monotonic()
        self._record: IO[str] | None = None
        if options.record:
            file = Path(options.record)
            if not is_worker:
                file.write_bytes(b"")
            # A line at once, and at the end of the file: processes share it, and some read along.
            self._record = file.open("a", encoding="utf-8", buffering=1)

    def start_clock(self) -> None:
        """Count times from now on."""
        self._started = time.monotonic()

    def since_start_s(self, moment: float) -> float:
        """Return a time of the monotonic clock as seconds from the start of the run."""
        return moment - self._started

    def write(self, record: RequestRecord) -> None:
        """Add a line to the record, if the run keeps one."""
        if self._record is not None:
            self._record.write(record.line())

    def close(self) -> None:
        """Close the record; what comes later is not written."""
        if self._record is not None:
            self._record.close()
            self._record = None


def _request_bodies(options: Namespace, body_count: int) -> tuple[RequestBody, ...]:
    if options.data:
        return read_dataset(Path(options.data))
    if options.archive:
        return vary_probes(Path(options.archive), body_count)
    with tempfile.TemporaryDirectory() as folder:
        return read_dataset(write_demo_data(Path(folder), items=DEMO_ITEMS).train)
