"""Reads region features as published feature extractors save them, without running any code.

    <id>.npy        features, (regions, dim)
    <id>_info.npy   a pickled dictionary: bbox (regions, 4) in pixels, num_boxes, objects, cls_prob,
                    image_width, image_height

A pickle can name any function to call. Here it may name those alone of which numpy arrays and
scalars are made, and even these are ours; every other name is refused before anything is loaded.
numpy takes the state of an array or a type as it comes, and the unpickler numbers and lengths: they
are checked first, or a few bytes cost gigabytes, or crash.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vlserve.errors import DataError
from vlserve.runtime.regions import with_areas

KINDS = "biufSUO"
"""Of numpy's dtypes: whole numbers, floats, bytes, text, and objects, which are read alike."""
MAX_FEATURES_BYTES = 2**30
MAX_INFO_BYTES = 64 * 2**20
MAX_REASON_CHARS = 200
MAX_INFO_STEPS = 100_000
"""Of a pickle, each of which makes an object of at most as many bytes as it has."""


@dataclass(frozen=True)
class Regions:
    """Regions of one image."""

    features: NDArray[np.float32]
    """(regions, dim)"""
    boxes: NDArray[np.float32]
    """(regions, 4): x1, y1, x2, y2 as fractions of width and height, as requests bring them."""

    @property
    def located(self) -> NDArray[np.float32]:
        """(regions, 5): the boxes, and the fraction of the area, as networks take them."""
        return with_areas(self.boxes)


def read_regions(features_file: Path) -> Regions:
    """Read ``<id>.npy`` with the ``<id>_info.npy`` beside it. DataError says what is wrong with
    which file, or what an info file wanted to load."""
    info_file = features_file.with_name(f"{features_file.stem}_info.npy")
    features, info = _read_features(features_file), read_info(info_file)
    try:
        number = int(info["num_boxes"])
        size = np.array([float(info["image_width"]), float(info["image_height"])])
        corners = np.asarray(info["bbox"], dtype=np.float64)[:number]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{info_file.name}: {type(error).__name__}: {error}") from error
    if not 1 <= number <= len(features) or corners.shape != (number, 4):
        raise DataError(
            f"{info_file.name}: num_boxes is {number}, bbox {np.shape(info['bbox'])}, "
            f"of features {features.shape}"
        )
    if not (size > 0).all() or not np.isfinite(corners).all():
        raise DataError(f"{info_file.name}: a size that is not positive, or a box not finite")
    boxes = _in_float32(corners / np.tile(size, 2), info_file, "a box")
    return Regions(features[:number], boxes)


def read_info(file: Path) -> dict[str, Any]:
    """Return the dictionary of an info file: numpy arrays, numbers, text, lists, tuples,
    dictionaries. DataError for anything else."""
    raw = _read_bytes(file, MAX_INFO_BYTES)
    try:
        array = _read_objects(raw)
        content = array.item() if array.shape == () else None
    except _Refused as error:
        raise DataError(f"{file.name} was refused: reading it would load {error}") from error
    except Exception as error:  # what numpy and pickle raise for damage is without end
        raise _unreadable(file, error) from error
    if not isinstance(content, dict):
        raise DataError(f"{file.name} holds no dictionary")
    return {
        name: value.view(np.ndarray) if isinstance(value, _Array) else value
        for name, value in content.items()
    }


def read_numbers(file: Path) -> NDArray[Any]:
    """Return the array of a .npy file, without running what it may hold. DataError where that
    cannot be read, or has more than MAX_FEATURES_BYTES."""
    raw = _read_bytes(file, MAX_FEATURES_BYTES)
    try:
        return npy.read_array(io.BytesIO(raw), allow_pickle=False)
    except Exception as error:  # a header is parsed as Python
        raise _unreadable(file, error) from error


def _read_features(file: Path) -> NDArray[np.float32]:
    features = read_numbers(file)
    if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
        raise DataError(
            f"{file.name}: must be finite floats (regions, dim), "
            f"not {features.dtype} {features.shape}"
        )
    return _in_float32(features, file, "a feature")


def _in_float32(values: NDArray[Any], file: Path, name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise DataError(f"{file.name}: {name} is beyond what float32 holds")
    return floats


def _read_bytes(file: Path, max_bytes: int) -> bytes:
    """Read a whole file; numpy would make the array that its header claims, whatever is there."""
    try:
        size_bytes = file.stat().st_size
        if size_bytes > max_bytes:
            raise DataError(f"{file.name} has {size_bytes} bytes, more than {max_bytes}")
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split())[:MAX_REASON_CHARS]
    return DataError(f"{file.name} cannot be read: {type(error).__name__}: {why}")


def _read_objects(raw: bytes) -> NDArray[Any]:
    """Return the array of a .npy file whose items are pickled."""
    stream = io.BytesIO(raw)
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    _, _, dtype = readers[version](stream)
    if dtype.kind != "O":
        raise ValueError(f"holds {dtype}, no dictionary")
    start = stream.tell()
    _check_steps(stream)
    stream.seek(start)
    array = _PlainUnpickler(stream, encoding="latin1").load()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"holds a {type(array).__name__}, no array")
    return array


def _check_steps(stream: IO[bytes]) -> None:
    """Refuse a pickle of too many steps, or that numbers its objects far beyond what it has: the
    unpickler makes a table as long as the largest number."""
    for count, (step, argument, _) in enumerate(pickletools.genops(stream), start=1):
        if count > MAX_INFO_STEPS:
            raise ValueError(f"has more than {MAX_INFO_STEPS} steps")
        if "PUT" in step.name and int(argument or 0) > 2 * MAX_INFO_STEPS:
            raise ValueError(f"numbers an object {argument}")


class _Refused(Exception):
    """Names what a pickle wanted to load."""


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array of a pickle, which its state fills once that is checked."""

    def __setstate__(self, state: Any, /) -> None:
        version, shape, code, column_major, content = state
        if not isinstance(code, _Code) or not isinstance(shape, tuple):
            raise TypeError("an array of no type or shape")
        dtype = code.dtype
        size = math.prod(int(length) for length in shape)
        if dtype.kind == "O":
            holds = isinstance(content, list) and len(content) == size
        else:
            content = content.encode("latin1") if isinstance(content, str) else content
            holds = isinstance(content, bytes) and len(content) == size * dtype.itemsize
        if not holds or min(shape, default=0) < 0:
            raise ValueError(f"an array {shape} of {dtype} that is not all there")
        fields: Any = (int(version), shape, dtype, bool(column_major), content)
        super().__setstate__(fields)


class _ArrayType:
    """Stands for numpy.ndarray, so that a pickle cannot call it."""


class _Code:
    """Stands for a numpy.dtype, so that a pickle cannot give it a state that it cannot have."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in KINDS:
            raise _Refused(f"numpy.dtype({code!r})")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """Return an empty array, which its state then fills."""
    if kind is not _ArrayType:
        raise _Refused(f"an array of {kind!r}")
    return _Array((0,), dtype="b")


def _scalar(code: _Code, data: bytes | str) -> Any:
    if code.dtype.kind == "O":
        raise _Refused("numpy.scalar of an object")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=code.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as old pickles write them."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


ADMITTED: Mapping[tuple[str, str], Callable[..., Any] | type] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Code,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.multiarray", name): ours
        for core in ("core", "_core")
        for name, ours in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}
"""What a pickle may name -> what it gets, under the names of numpy 1 and 2."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        return ADMITTED[module, name]
