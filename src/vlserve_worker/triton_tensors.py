"""Bytes in and out of Triton's Python stub, by DLPack.

The stub of Triton 2.51 was built for numpy 1: with numpy 2 its ``as_numpy`` gives other bytes than
were sent, without an error, and a tensor that it makes of an array is empty. DLPack knows nothing
of numpy's layout, and is right both ways; `prove_exchange` proves it before anything is served.
"""

import ctypes
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_USED = b"used_dltensor"
"""How a capsule is called once its array belongs to someone else; numpy looks at it at the end."""

_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes, _set_name.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int


class TensorsCorrupt(RuntimeError):
    """This stub and this numpy do not exchange bytes as they are."""


def read_tensor(tensor: Any) -> bytearray:
    """Return a copy of the bytes of a UINT8 tensor, (1, bytes)."""
    return bytearray(np.from_dlpack(tensor))


def write_tensor(name: str, content: bytes | bytearray) -> Any:
    """Return ``content`` as a UINT8 tensor, (1, bytes)."""
    array = np.frombuffer(bytearray(content), dtype=np.uint8).reshape(1, -1)
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_name(capsule, _USED)  # the stub takes the array over, and leaves the name as it was
    return tensor


def prove_exchange() -> None:
    """Send bytes through a tensor and back.

    Raises:
        TensorsCorrupt: others came back.
    """
    data = bytes(range(256)) * 3 + b"end"
    copy = bytes(read_tensor(write_tensor("proof", data)))
    if copy != data:
        raise TensorsCorrupt(
            f"{len(data)} bytes came back as {len(copy)} others: numpy {np.__version__} does "
            "not fit Triton's Python stub: install what requirements.lock and triton.lock say"
        )
