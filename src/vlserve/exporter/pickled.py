"""Says which classes and functions a pickle names, without building any of them."""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vlserve.exporter.file_kinds import STATE_DICT

MAX_BYTES = 4 * 1024 * 1024
"""Of the pickle that are looked at."""
LEGACY_PICKLES = 4
"""Of an older file of torch: a magic number, a version, facts of the system, the object."""
DISTRIBUTED = "torch.distributed."
REMEMBERED = ("BINGET", "LONG_BINGET", "GET")
STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")


def explain(path: Path, forbidden: str) -> str:
    """Say what a torch file holds that only code can read, and what to do.

    Args:
        path: the file.
        forbidden: the first class or function that torch refused to build, ``module.name``.
    """
    names = list(named_by(path))
    if any(name.startswith(DISTRIBUTED) for name in [forbidden, *names]):
        return (
            f"holds one process's part of a distributed checkpoint ({forbidden}). Save the whole "
            "state_dict: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True"
        )
    if forbidden.startswith("transformers.training_args"):
        return f"holds the arguments of a training run ({forbidden}), no weights"
    is_module = any(name.startswith(("torch.nn.modules.", "torch.fx.")) for name in names)
    if is_module and names[0] != "collections.OrderedDict":
        return (
            f"holds a whole pickled module ({_of_the_module(names)}): reading it would run its "
            f"code. {STATE_DICT}"
        )
    return f"was refused: reading it would run {forbidden}. {STATE_DICT}"


def named_by(path: Path) -> Iterator[str]:
    """Yield ``module.name`` of each class and function that the pickle names, in its order, as far
    as it can be read."""
    stream = io.BytesIO(_pickle_of(path))
    strings: list[str] = []
    seen: set[str] = set()
    try:
        for _ in range(LEGACY_PICKLES):
            for code, argument, _ in pickletools.genops(stream):
                if code.name in STRINGS:
                    strings = [*strings[-1:], str(argument)]
                elif code.name in REMEMBERED:  # which string, is not known here
                    strings = []
                name = ""
                if code.name == "GLOBAL":
                    name = str(argument).replace(" ", ".")
                elif code.name == "STACK_GLOBAL" and len(strings) == 2:
                    name = ".".join(strings)
                if name and name not in seen:
                    seen.add(name)
                    yield name
    except (ValueError, EOFError, UnicodeDecodeError):
        return


def _pickle_of(path: Path) -> bytes:
    """Return the first bytes of the pickle in a torch file, of either form."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(member) as file:
                return file.read(MAX_BYTES)
    except (zipfile.BadZipFile, StopIteration, ValueError, NotImplementedError):
        with path.open("rb") as file:
            return file.read(MAX_BYTES)


def _of_the_module(names: list[str]) -> str:
    """Return the module's own class: the first that is none of torch's, else the first."""
    own = [name for name in names if not name.startswith(("torch.", "collections.", "__builtin__"))]
    return (own or names)[0]
