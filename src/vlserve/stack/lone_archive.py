"""The archive of `vlserve serve`: found, copied to where the engine reads it, verified there."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from vlserve.control.domain import EngineKind, State, VersionRecord
from vlserve.control.lifecycle.registration import servable
from vlserve.control.lifecycle.trust import signer_of_new
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.errors import ArchiveUnreadable
from vlserve.settings_sections import TrustSettings
from vlserve.signing.beside import read_beside


def archive_in(place: Path) -> Path:
    """Return the archive that is meant by a file, or by a folder that holds one alone.

    Raises:
        ArchiveError: The folder holds none, or several.
    """
    if not place.is_dir():
        return place
    archives = sorted(file for file in place.glob("*.mar") if file.is_file())
    if len(archives) == 1:
        return archives[0]
    names = ", ".join(file.name for file in archives[:3]) or "none"
    raise ArchiveUnreadable(
        f"{place} must hold one archive (.mar), and holds {len(archives)} ({names}): name the file"
    )


def taken_over(
    archive: Path, store: Path, engine: EngineKind, trust: TrustSettings
) -> VersionRecord:
    """Copy an archive into an empty ``store``, verify the copy, and return it as a stable version:
    whatever becomes of the original, what was verified is served, also after a restart.

    Raises:
        ArchiveError: It cannot be served.
        SignatureRefused: It is not signed as ``trust`` asks.
        OSError: It cannot be read, or the store not written.
    """
    copy = store / "incoming.mar"
    store.mkdir(parents=True)
    shutil.copyfile(archive, copy)
    sha256 = file_sha256(copy)
    signer = signer_of_new(trust, sha256, read_beside(archive), archive.name)
    manifest = servable(copy, archive.name)
    model, version = manifest.model, manifest.version
    file = store / f"{model}-{version}.mar"
    copy.replace(file)
    now = datetime.now(UTC).isoformat()
    return VersionRecord(
        model=model,
        version=version,
        archive=file,
        sha256=sha256,
        manifest=manifest,
        state=State.STABLE,
        reason="",
        was_ready=True,
        registered_at=now,
        changed_at=now,
        engine=engine,
        signer=signer,
    )
