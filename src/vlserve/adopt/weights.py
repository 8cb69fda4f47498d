"""What a file of weights is, by its content: suffixes say little."""

from enum import StrEnum
from pathlib import Path

from vlserve.exporter.file_kinds import begins_as_pickle, is_torchscript, read_head
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
    head = read_head(file)
    if head.raw.startswith(b"\x7fELF") or file.suffix.lower() in _MACHINE_CODE:
        return Kind.MACHINE_CODE
    if is_torchscript(head):
        return Kind.TORCHSCRIPT
    if head.has("data.pkl") or begins_as_pickle(head):
        return _of_pickle(file)
    if head.members is None and file.suffix.lower() in _PICKLES:
        return Kind.CODE_IN_PICKLE
    return Kind.OTHER


def _of_pickle(file: Path) -> Kind:
    """Tell by the names that it builds: torch's own reader of weights takes some, and no others."""
    from torch._weights_only_unpickler import _get_allowed_globals

    names = _get_allowed_globals().keys() | _OF_PYTHON_2
    return Kind.STATE_DICT if names.issuperset(named_by(file)) else Kind.CODE_IN_PICKLE


_OF_PYTHON_2 = {"__builtin__.set", "__builtin__.list", "__builtin__.dict"}
