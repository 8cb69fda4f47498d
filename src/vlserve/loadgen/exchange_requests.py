"""Requests for a model with an adopted version: its probes, as its clients send them."""

import base64
from pathlib import Path

from vlserve.loadgen.dataset_requests import RequestBody
from vlserve.runtime.archive import manifest_of
from vlserve.runtime.errors import ArchiveError


def exchange_bodies(archive: Path) -> tuple[RequestBody, ...]:
    """Return the bodies of an archive's probes; none where it was not adopted. ArchiveError."""
    manifest = manifest_of(archive)
    if not manifest.adopted:
        return ()
    return tuple(
        RequestBody(
            base64.b64decode(probe.fields["content"]),
            probe.fields["headers"].get("content-type", ""),
        )
        for probe in manifest.probes
    )


def adopted_archive(store: Path, model: str) -> Path | None:
    """Return the archive of a model's newest adopted version in a model store; None: it has none.

    What cannot be read is passed over: who serves it says so."""
    newest_first = sorted(
        (int(file.parent.name), file)
        for file in store.glob(f"{model}/*/{model}-*.mar")
        if file.parent.name.isdecimal()
    )[::-1]
    for _, file in newest_first:
        try:
            if manifest_of(file).adopted:
                return file
        except ArchiveError:
            continue
    return None
