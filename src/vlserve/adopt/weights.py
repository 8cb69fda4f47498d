"""What a file of weights is, by its content: suffixes say little."""

import zipfile
from enum import StrEnum
from pathlib import Path

from vlserve.exporter.pickled import named_by

_PICKLES = (".pkl", ".pickle", ".joblib")
_MACHINE_CODE = (".so", ".engine", ".plan", ".trt", ".neff")


class Kind(StrEnum):
    """Of a file in an archive."""

    OTHER = "other"
    TORCHSCRIPT = "TorchScript"
    STATE_DICT = "state dict"
    CODE_IN_PICKLE = "code in a pickle"
    MACHINE_CODE = "machine code"


def kind_of(file: Path) -> Kind:
    """Return what a file is."""
    with file.open("rb") as opened:
        head = opened.read(4)
    if head == b"\x7fELF" or file.suffix.lower() in _MACHINE_CODE:
        return Kind.MACHINE_CODE
    if head == b"PK\x03\x04":
        return _of_zip(file)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _of_pickle(file)
    return Kind.CODE_IN_PICKLE if file.suffix.lower() in _PICKLES else Kind.OTHER


def _of_zip(file: Path) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return Kind.OTHER
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return Kind.TORCHSCRIPT
    return _of_pickle(file) if "data.pkl" in inside else Kind.OTHER


def _of_pickle(file: Path) -> Kind:
    """Tell by the names that it builds: torch's own reader of weights takes some, and no others."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = _get_allowed_globals().keys() | _OF_PYTHON_2
    return Kind.STATE_DICT if allowed.issuperset(named_by(file)) else Kind.CODE_IN_PICKLE


_OF_PYTHON_2 = {"__builtin__.set", "__builtin__.list", "__builtin__.dict"}
