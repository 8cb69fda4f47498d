"""Archives that were made by torch-model-archiver and adopted: their requests are not read here."""

from pathlib import Path

ADOPTED = "adopted"
"""Their task."""


def is_adopted(archive: Path) -> bool:
    """Return whether the unpacked archive holds a handler of TorchServe, which gets a request as it
    was sent, and answers in its own words."""
    return (archive / "handlers" / f"{ADOPTED}.py").is_file()
