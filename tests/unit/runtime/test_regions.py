"""Features and boxes that strangers send: read as they are, or refused with the reason."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from support.questions import npy
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import RegionInput
from vlserve.runtime.regions import grid_boxes, grid_of, pad_regions, read_boxes, read_features

SPEC = RegionInput(dim=3, max_regions=4, boxes=True, max_bytes=2000)
GOOD = np.arange(6, dtype=np.float32).reshape(2, 3)
BOXES = [[0, 0, 0.5, 1], [0.25, 0.5, 1, 1]]
UNREADABLE, INVALID = ErrorCode.FEATURES_UNREADABLE, ErrorCode.FIELD_INVALID
TOO_LARGE = ErrorCode.FEATURES_TOO_LARGE


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_and_order(dtype: str, order: Any) -> None:
    features = read_features(npy(np.asarray(GOOD.astype(dtype), order=order)), SPEC)
    assert features.dtype == np.float32 and features.flags.c_contiguous
    np.testing.assert_array_equal(features, GOOD)


def test_the_second_version_of_the_format() -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, GOOD, version=(2, 0))
    np.testing.assert_array_equal(read_features(file.getvalue(), SPEC), GOOD)


def header(shape: str, descr: str = "<f4", data: bytes = b"") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


BAD: dict[str, tuple[bytes, ErrorCode, str]] = {
    "nothing": (b"", UNREADABLE, "not a .npy file"),
    "an-image": (b"\x89PNG\r\n\x1a\n", UNREADABLE, "not a .npy file"),
    "a-pickle": (pickle.dumps(GOOD), UNREADABLE, "not a .npy file"),
    "objects": (npy(np.array([[1, None, "x"]], dtype=object)), INVALID, "must be float16"),
    "whole-numbers": (npy(GOOD.astype(np.int64)), INVALID, "must be float16"),
    "complex": (npy(GOOD.astype(np.complex64)), INVALID, "must be float16"),
    "long-floats": (npy(GOOD.astype(np.longdouble)), INVALID, "must be float16"),
    "records": (npy(np.zeros(2, dtype=[("a", "<f4")])), INVALID, "must be float16"),
    "cut-short": (npy(GOOD)[:-1], UNREADABLE, "cut short"),
    "too-long": (npy(GOOD) + b"\0", UNREADABLE, "cut short or too long"),
    "a-shape-without-data": (header("(1000000000, 1000000)"), UNREADABLE, "cut short"),
    "a-negative-shape": (header("(-2, -3)", data=b"\0" * 24), UNREADABLE, "(-2, -3)"),
    "a-shape-that-is-none": (header("__import__('os')"), UNREADABLE, "not a .npy file"),
    "a-type-that-is-none": (header("(2, 3)", "zz"), UNREADABLE, "not a .npy file"),
    "version-9": (b"\x93NUMPY\x09\x00" + npy(GOOD)[8:], UNREADABLE, "not a .npy file"),
    "one-axis": (npy(GOOD[0]), INVALID, "must be (regions, 3), not (3,)"),
    "three-axes": (npy(GOOD[None]), INVALID, "must be (regions, 3)"),
    "another-width": (npy(GOOD.T), INVALID, "must be (regions, 3), not (3, 2)"),
    "no-region": (npy(GOOD[:0]), INVALID, "1 to 4 regions, not 0"),
    "too-many": (npy(np.zeros((5, 3), np.float32)), INVALID, "1 to 4 regions, not 5"),
    "not-a-number": (npy(np.array([[0, np.nan, 1]])), INVALID, "must be finite"),
    "infinite": (npy(np.array([[0, -np.inf, 1]])), INVALID, "must be finite"),
    "over-float32": (npy(np.array([[0, 1e300, 1]])), INVALID, "must be finite"),
    "too-large": (npy(np.zeros((200, 3))), TOO_LARGE, "the limit is 2000"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_features(case: str) -> None:
    data, code, message = BAD[case]
    with pytest.raises(RequestError) as error:
        read_features(data, SPEC, "features2")
    assert error.value.code is code
    assert message in error.value.message and "features2" in error.value.message


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: npy(GOOD)[:90] + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert np.isfinite(read_features(data, SPEC)).all()
    except RequestError as error:
        assert error.code in (UNREADABLE, INVALID, TOO_LARGE)


def test_boxes_get_their_area() -> None:
    expected = [[0, 0, 0.5, 1, 0.5], [0.25, 0.5, 1, 1, 0.375]]
    np.testing.assert_allclose(read_boxes(BOXES, 2, 2000), expected)
    np.testing.assert_allclose(read_boxes(npy(np.array(BOXES)), 2, 2000), expected)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "must be (2, 4)"),
        (BOXES[:1], "must be (2, 4), one a region, not (1, 4)"),
        ([*BOXES, BOXES[0]], "must be (2, 4)"),
        ([[0, 0, 1], BOXES[1]], "box 0 is not x1, y1, x2, y2"),
        ([BOXES[0], "0011"], "box 1 is not x1, y1, x2, y2"),
        ([BOXES[0], [0, 0, True, 1]], "box 1 is not x1, y1, x2, y2"),
        ([BOXES[0], [0, 0, 1, 10**400]], "box 1 is not in fractions"),
        ([BOXES[0], [0, -0.1, 1, 1]], "box 1 is not in fractions"),
        ([BOXES[0], [0.5, 0, 0.5, 1]], "does not hold for box 1"),
        ([BOXES[0], [0, 0.7, 1, 0.2]], "does not hold for box 1"),
        (npy(np.array(BOXES) * 100), "must be fractions"),
        (npy(np.array(BOXES).T), "must be (2, 4)"),
        (npy(np.full((2, 4), np.nan)), "must be finite"),
        (b"[[0, 0", "not a .npy file"),
    ],
)
def test_what_is_no_boxes(boxes: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_boxes(boxes, 2, 2000)
    assert message in error.value.message


def test_the_cells_of_a_grid() -> None:
    expected = [[0, 0, 0.5, 1, 0.5], [0.5, 0, 1, 1, 0.5]]
    np.testing.assert_allclose(grid_boxes(1, 2), expected)
    assert grid_boxes(7, 7).shape == (49, 5)
    np.testing.assert_allclose(grid_boxes(3, 4)[5, :4], [0.25, 1 / 3, 0.5, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("cells", "height", "width", "grid"),
    [
        (49, 224, 224, (7, 7)),
        (12, 24, 32, (3, 4)),
        (22 * 16, 700, 500, (22, 16)),
        (5, 9, 9, (1, 5)),
    ],
)
def test_rows_and_columns_of_an_image(
    cells: int, height: int, width: int, grid: tuple[int, int]
) -> None:
    assert grid_of(cells, height, width) in (grid, grid[::-1] if height == width else grid)


@given(st.lists(npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2))), min_size=1))
def test_padding_keeps_what_there_is(rows: list[Any]) -> None:
    padded = pad_regions(rows, -2)
    for row, target in zip(rows, padded, strict=True):
        np.testing.assert_array_equal(target[: len(row)], row)
        assert not target[len(row) :].any()
