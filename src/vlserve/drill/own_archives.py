"""Which archives a drill is for."""

from pathlib import Path

from vlserve.errors import StressError
from vlserve.runtime.archive import manifest_of


def refuse_adopted(archive: Path) -> None:
    """Raise StressError for an adopted archive: a drill makes copies of a task of ours with faults
    in it, and compares answers in JSON."""
    manifest = manifest_of(archive)
    if manifest.adopted:
        raise StressError(
            f"{manifest.model} {manifest.version} was adopted from TorchServe: drills are for "
            f"models of vlserve's own tasks; `vlserve stress {manifest.model} --gray-release` "
            "checks a release of it"
        )
