"""Visual features and boxes of image regions: what a request brings -> as networks read them.

What a stranger sends is read by its header first: nothing is unpickled, and no array is made that
is larger than the bytes that came.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.errors import ErrorCode, RequestError, shortened
from vlserve.runtime.manifest import RegionInput
from vlserve.runtime.types import Float32Array


def with_areas(boxes: Float32Array) -> Float32Array:
    """(regions, 4): x1, y1, x2, y2 as fractions of width and height -> (regions, 5): and the
    fraction of the image's area."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.concatenate([boxes, areas[:, None]], axis=1)


def with_global_region(
    visual: Float32Array, boxes: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return visual (regions, dim) and boxes (regions, 5), with a region in front that is the whole
    image: the mean of all features. As ViLBERT's networks were trained."""
    whole = np.array([[0, 0, 1, 1, 1]], dtype=boxes.dtype)
    mean = visual.mean(axis=0, keepdims=True, dtype=visual.dtype)
    return np.concatenate([mean, visual]), np.concatenate([whole, boxes])


def read_features(data: bytes, spec: RegionInput, name: str = "features") -> Float32Array:
    """Read a .npy file to (regions, spec.dim). RequestError where it is none, too large, of
    another size, or not finite; ``name`` is the field's."""
    features = _read_npy(data, spec.max_bytes, name)
    if features.ndim != 2 or features.shape[1] != spec.dim:
        raise _invalid(f"{name}: must be (regions, {spec.dim}), not {features.shape}")
    if not 1 <= len(features) <= spec.max_regions:
        raise _invalid(f"{name}: must have 1 to {spec.max_regions} regions, not {len(features)}")
    return features


def read_boxes(
    value: bytes | list[Any], regions: int, max_bytes: int, name: str = "boxes"
) -> Float32Array:
    """Read a .npy file or a list of x1, y1, x2, y2 a region to (regions, 5), with areas."""
    if isinstance(value, bytes):
        corners = _read_npy(value, max_bytes, name)
    else:
        corners = _from_list(value, name)
    if corners.shape != (regions, 4):
        raise _invalid(f"{name}: must be ({regions}, 4), one a region, not {corners.shape}")
    if corners.min() < 0 or corners.max() > 1:
        raise _invalid(f"{name}: must be fractions of the image's width and height, from 0 to 1")
    wrong = np.flatnonzero((corners[:, 0] >= corners[:, 2]) | (corners[:, 1] >= corners[:, 3]))
    if len(wrong):
        raise _invalid(f"{name}: x1 < x2 and y1 < y2 does not hold for box {wrong[0]}")
    return with_areas(corners)


def grid_boxes(rows: int, columns: int) -> Float32Array:
    """Return boxes of the cells of a grid, row by row, (rows * columns, 5)."""
    top, left = np.divmod(np.arange(rows * columns), columns)
    corners = [left / columns, top / rows, (left + 1) / columns, (top + 1) / rows]
    return with_areas(np.stack(corners, axis=1).astype(np.float32))


def grid_of(cells: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of ``cells``, as square as they can be over an image of that size."""
    fits = [(rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0]
    return min(fits, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))


def pad_regions(rows: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
    """Pad arrays whose ``axis`` (counted from the end, negative) differs by 0 to one batch."""
    longest = max(row.shape[axis] for row in rows)
    return np.stack([_padded(row, axis, longest) for row in rows])


def _padded(row: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    widths = [(0, 0)] * row.ndim
    widths[axis] = (0, length - row.shape[axis])
    return np.pad(row, widths)


def _read_npy(data: bytes, max_bytes: int, name: str) -> Float32Array:
    if len(data) > max_bytes:
        raise RequestError(
            ErrorCode.FEATURES_TOO_LARGE, f"{name} has {len(data)} bytes, the limit is {max_bytes}"
        )
    shape, column_major, dtype, start = _read_header(data, name)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise _invalid(f"{name}: must be float16, float32 or float64, not {dtype}")
    size_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size_bytes != len(data) - start:
        raise RequestError(
            ErrorCode.FEATURES_UNREADABLE,
            f"{name} is cut short or too long: {shape} of {dtype} in {len(data) - start} bytes",
        )
    values = np.frombuffer(data, dtype, offset=start)
    array = values.reshape(shape, order="F" if column_major else "C")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise _invalid(f"{name}: must be finite")
    return floats


def _read_header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether it is in column-major order, type, and where the numbers begin."""
    file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {version} of the format is for no plain array")
    except Exception as error:  # headers are parsed as Python: what they raise is without end
        raise RequestError(
            ErrorCode.FEATURES_UNREADABLE, f"{name} is not a .npy file: {shortened(error)}"
        ) from error
    shape, column_major, dtype = header
    return shape, column_major, dtype, file.tell()


def _from_list(rows: Any, name: str) -> Float32Array:
    for number, row in enumerate(rows):
        plain = isinstance(row, list) and all(type(value) in (int, float) for value in row)
        if not plain or len(row) != 4:
            raise _invalid(f"{name}: box {number} is not x1, y1, x2, y2")
        if not all(0 <= value <= 1 for value in row):
            raise _invalid(f"{name}: box {number} is not in fractions, from 0 to 1")
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
