"""Reads region features as published feature extractors save them, without running any code.

    <id>.npy        features, (regions, dim)
    <id>_info.npy   a pickled dictionary: bbox (regions, 4) in pixels, num_boxes, objects, cls_prob,
                    image_width, image_height

A pickle can name any function to call. Here it may name those alone of which numpy arrays and
scalars are made, and even these are ours; every other name is refused before anything is loaded.
"""

import pickle
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
UNREADABLE = (
    *(OSError, EOFError, MemoryError, pickle.UnpicklingError),
    *(ValueError, TypeError, AttributeError, LookupError),
)
"""What numpy and pickle raise for a damaged file."""


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
    """``<id>.npy`` with the ``<id>_info.npy`` beside it. DataError says what is wrong with which
    file, or what an info file wanted to load."""
    info_file = features_file.with_name(f"{features_file.stem}_info.npy")
    features, info = _read_features(features_file), read_info(info_file)
    try:
        number = int(info["num_boxes"])
        size = np.array([float(info["image_width"]), float(info["image_height"])])
        corners = np.asarray(info["bbox"], dtype=np.float64)[:number]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{info_file.name}: {type(error).__name__}: {error}") from error
    if not 1 <= number <= len(features) or corners.shape != (number, 4):
        raise DataError(
            f"{info_file.name}: num_boxes is {number}, bbox {np.shape(info['bbox'])}, "
            f"of features {features.shape}"
        )
    if not (size > 0).all() or not np.isfinite(corners).all():
        raise DataError(f"{info_file.name}: a size that is not positive, or a box not finite")
    boxes = (corners / np.tile(size, 2)).astype(np.float32)
    return Regions(features[:number], boxes)


def read_info(file: Path) -> dict[str, Any]:
    """The dictionary of an info file: numpy arrays, numbers, text, lists, tuples, dictionaries.
    DataError for anything else."""
    try:
        with file.open("rb") as stream:
            array = _read_objects(stream)
        content = array.item() if array.shape == () else None
    except _Refused as error:
        raise DataError(f"{file.name} was refused: reading it would load {error}") from error
    except UNREADABLE as error:
        raise DataError(f"{file.name} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file.name} holds no dictionary")
    return content


def _read_features(file: Path) -> NDArray[np.float32]:
    try:
        with file.open("rb") as stream:
            features = npy.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{file.name} cannot be read: {type(error).__name__}: {error}") from error
    if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
        raise DataError(
            f"{file.name}: must be finite floats (regions, dim), "
            f"not {features.dtype} {features.shape}"
        )
    return features.astype(np.float32)


def _read_objects(stream: IO[bytes]) -> NDArray[Any]:
    """The array of a .npy file whose items are pickled."""
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    _, _, dtype = readers[version](stream)
    if dtype.kind != "O":
        raise ValueError(f"holds {dtype}, no dictionary")
    array = _PlainUnpickler(stream, encoding="latin1").load()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"holds a {type(array).__name__}, no array")
    return array


class _Refused(Exception):
    """Names what a pickle wanted to load."""


class _ArrayType:
    """Stands for numpy.ndarray, so that a pickle cannot call it."""


def _dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
    dtype = np.dtype(str(code), copy=bool(copy))
    if dtype.kind not in KINDS:
        raise _Refused(f"numpy.dtype({code!r})")
    return dtype


def _reconstruct(kind: object, shape: object, code: object) -> NDArray[Any]:
    """An empty array, which its state then fills."""
    if kind is not _ArrayType:
        raise _Refused(f"an array of {kind!r}")
    return np.ndarray((0,), dtype="b")


def _scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How old pickles write bytes."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


ADMITTED: Mapping[tuple[str, str], Callable[..., Any] | type] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _dtype,
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
