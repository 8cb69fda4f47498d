"""Region feature files: read without running what they name."""

import io
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlserve.errors import DataError
from vlserve.exporter import regions as regions_module
from vlserve.exporter.regions import read_info, read_regions
from vlserve.runtime.regions import with_global_region

WIDTH, HEIGHT = 640, 480


def info_of(regions: int, **changes: Any) -> dict[str, Any]:
    """As vilbert-multi-task's extract_features.py saves it."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 200, (regions, 4)).astype(np.float32)
    corners[:, 2:] += corners[:, :2] + 1
    info = {
        "bbox": corners,
        "num_boxes": regions,
        "objects": random.integers(0, 1600, regions),
        "cls_prob": random.uniform(size=(regions, 12)).astype(np.float32),
        "image_width": WIDTH,
        "image_height": HEIGHT,
    }
    return info | changes


def save(folder: Path, features: Any, info: Any) -> Path:
    np.save(folder / "image7.npy", features)
    np.save(folder / "image7_info.npy", info)
    return folder / "image7.npy"


def save_pickle(folder: Path, array: Any, protocol: int) -> None:
    """A .npy file of objects, as numpy writes it, with any pickle protocol."""
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, header)
    stream.write(pickle.dumps(array, protocol=protocol))
    (folder / "image7_info.npy").write_bytes(stream.getvalue())


def features_of(regions: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(1).normal(size=(regions, 2048)).astype(dtype)


def test_features_and_boxes_are_read(tmp_path: Path) -> None:
    features, info = features_of(5), info_of(5)
    regions = read_regions(save(tmp_path, features, info))
    np.testing.assert_array_equal(regions.features, features)
    x1, y1, x2, y2 = info["bbox"].astype(np.float64).T
    boxes = np.stack([x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT], axis=1)
    np.testing.assert_allclose(regions.boxes, boxes, rtol=1e-6)
    assert regions.features.dtype == regions.boxes.dtype == regions.located.dtype == np.float32
    np.testing.assert_array_equal(regions.located[:, :4], regions.boxes)
    area = (x2 - x1) * (y2 - y1) / (WIDTH * HEIGHT)
    np.testing.assert_allclose(regions.located[:, 4], area, rtol=1e-4)


def test_the_whole_image_in_front_is_the_mean_of_its_regions(tmp_path: Path) -> None:
    regions = read_regions(save(tmp_path, features_of(4), info_of(4)))
    visual, boxes = with_global_region(regions.features, regions.located)
    np.testing.assert_allclose(visual[0], regions.features.sum(axis=0) / 4, atol=1e-6)
    np.testing.assert_array_equal(visual[1:], regions.features)
    np.testing.assert_array_equal(boxes[0], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(boxes[1:], regions.located)
    assert visual.dtype == boxes.dtype == np.float32


def test_only_real_regions_are_taken(tmp_path: Path) -> None:
    info = info_of(6, num_boxes=np.int64(4))
    regions = read_regions(save(tmp_path, features_of(6, np.float64), info))
    assert regions.features.shape == (4, 2048) and regions.boxes.shape == (4, 4)


@pytest.mark.parametrize("protocol", range(2, 5))
def test_every_protocol_that_numpy_wrote_is_read(protocol: int, tmp_path: Path) -> None:
    plain = {"image_id": "7", "sizes": [1, (2.5, None, True)], "score": np.float32(0.5)}
    info = info_of(3, **plain, raw=b"\xff\x00", words=np.array(["a", "bc"]))
    save_pickle(tmp_path, np.array(info, dtype=object), protocol)
    content = read_info(tmp_path / "image7_info.npy")
    assert content.keys() == info.keys()
    for name, value in info.items():
        assert type(content[name]) is type(value), name
        if isinstance(value, np.ndarray):
            assert content[name].dtype == value.dtype, name
            np.testing.assert_array_equal(content[name], value, err_msg=name)
        else:
            assert content[name] == value, name


class Runs:
    """Its pickle calls a function that leaves a mark."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(5))
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    np.save(tmp_path / "image7.npy", features_of(2))
    for runs, function in (
        (Runs(os.mkdir, str(mark)), f"{os.mkdir.__module__}.mkdir"),
        (Runs(eval, f"open({str(mark)!r}, 'w')"), r"\w+\.eval"),
        (Runs(getattr, "", "join"), r"\w+\.getattr"),
        (Runs(np.fromfile, str(mark)), r"numpy\S*\.fromfile"),
    ):
        for info in (runs, info_of(2, bbox=runs), info_of(2, objects=np.array([runs, 1], object))):
            array = np.empty((), dtype=object)
            array[()] = info
            save_pickle(tmp_path, array, protocol)
            with pytest.raises(DataError, match=f"image7_info.npy was refused.* {function}"):
                read_regions(tmp_path / "image7.npy")
            assert not mark.exists()


def test_numpys_own_functions_cannot_be_called_otherwise(tmp_path: Path) -> None:
    for runs, function in (
        (Runs(np.ndarray, (1 << 40,)), None),
        (Runs(np.dtype, [("a", "f4")]), None),
        (Runs(np.dtype, "V8"), "numpy.dtype"),
    ):
        array = np.empty((), dtype=object)
        array[()] = runs
        save_pickle(tmp_path, array, 4)
        with pytest.raises(DataError, match=function or r"image7_info.npy (cannot|was|holds)"):
            read_info(tmp_path / "image7_info.npy")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_boxes": 9}, "num_boxes is 9"),
        ({"num_boxes": 0}, "num_boxes is 0"),
        ({"num_boxes": float("inf")}, "OverflowError"),
        ({"bbox": np.full((3, 4), 1e300)}, "beyond what float32 holds"),
        ({"bbox": np.zeros((3, 5))}, r"bbox \(3, 5\)"),
        ({"image_width": 0}, "not positive"),
        ({"bbox": np.full((3, 4), np.nan)}, "not finite"),
        ({"bbox": "none"}, "ValueError"),
    ],
)
def test_what_cannot_be_says_which_file_and_why(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file = save(tmp_path, features_of(3), info_of(3, **changes))
    with pytest.raises(DataError, match=f"image7_info.npy: .*{reason}"):
        read_regions(file)


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    info = info_of(3)
    del info["image_height"]
    with pytest.raises(DataError, match=r"image7_info.npy: KeyError: 'image_height'"):
        read_regions(save(tmp_path, features_of(3), info))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, features_of(3), info_of(3))
    info = tmp_path / "image7_info.npy"
    raw = info.read_bytes()
    for content in (b"", raw[:40], raw[: len(raw) // 2], b"PK\x03\x04" + raw):
        info.write_bytes(content)
        with pytest.raises(DataError, match=r"image7_info.npy cannot be read"):
            read_regions(file)
    np.save(info, np.zeros(3))
    with pytest.raises(DataError, match="no dictionary"):
        read_regions(file)
    np.save(info, np.array([info_of(3)], dtype=object))
    with pytest.raises(DataError, match="holds no dictionary"):
        read_regions(file)
    info.unlink()
    with pytest.raises(DataError, match=r"image7_info.npy cannot be read: FileNotFoundError"):
        read_regions(file)


@pytest.mark.parametrize(
    "features",
    [
        *(np.zeros((3, 4), int), np.zeros(3), np.full((3, 4), np.inf)),
        *(np.array([{}], dtype=object), np.full((3, 4), 1e300)),
    ],
    ids=["whole", "flat", "infinite", "objects", "beyond-float32"],
)
def test_features_that_are_none_are_refused(features: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image7.npy"):
        read_regions(save(tmp_path, features, info_of(3)))


def header() -> bytes:
    stream = io.BytesIO()
    fields = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


class Built:
    """Its pickle calls ``function`` and gives the result ``state``, whatever that is."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]
EMPTY = (np.ndarray, (0,), b"b")


@pytest.mark.parametrize(
    "value",
    [
        Built(np.dtype, ("S1", False, True), (3, "|", None, None, None, -(2**31), 1, 0)),
        Built(np.dtype, ("O", False, True), (3, "|", None, ("a",), {"a": 1}, 8, 8, 63)),
        Built(np.dtype, ("f8", False, True), (9, "<")),
        Built(np.dtype, ("f8", False, True), 7),
        Built(RECONSTRUCT, EMPTY, (1, (2**62, 4), np.dtype("f8"), False, b"")),
        Built(RECONSTRUCT, EMPTY, (1, (-1,), np.dtype("f8"), False, b"")),
        Built(RECONSTRUCT, EMPTY, (1, (1,), np.dtype("O"), False, b"12345678")),
        Built(RECONSTRUCT, EMPTY, (1, (1,), "f8", False, bytes(8))),
        Built(RECONSTRUCT, EMPTY, (1,)),
        Built(RECONSTRUCT, EMPTY, {"shape": (1,)}),
    ],
    ids=lambda value: f"{value.call[0].__name__}-{value.call[2]}",
)
def test_a_state_that_cannot_be_is_an_error_of_one_line(value: Any, tmp_path: Path) -> None:
    array = np.empty((), dtype=object)
    array[()] = info_of(2, objects=[value, np.arange(2), np.float32(1)])
    save_pickle(tmp_path, array, 4)
    try:
        info = read_info(tmp_path / "image7_info.npy")
    except DataError as error:
        assert "image7_info.npy cannot be read: " in str(error)
    else:  # a type alone is nothing that numpy could work with
        assert not isinstance(info["objects"][0], np.dtype | np.ndarray)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(b"\x80\x04Kr\x07\xff\xff\xff.".replace(b"Kr\x07", b"K\x07r"), id="memo"),
        pytest.param(b"\x80\x04" + b"N0" * 60_000 + b"N.", id="steps"),
        pytest.param(b"\x80\x04\x8e" + b"\xff" * 6 + b"\0\0.", id="a-length"),
        pytest.param(b"\x80\x04]b.", id="build-on-nothing"),
        pytest.param(b"\x80\x04" + b"]" * 100 + b"e.", id="no-mark"),
        pytest.param(b"\x80\x04K\x01\x8c\x01a\x93.", id="a-number-for-a-module"),
        pytest.param(b"\x80\x05\x97.", id="a-buffer"),
        pytest.param(b"P1\n.", id="a-persistent-id"),
        pytest.param(b"\x82\x01.", id="an-extension"),
    ],
)
def test_a_crafted_pickle_is_an_error_of_one_line(steps: bytes, tmp_path: Path) -> None:
    (tmp_path / "image7_info.npy").write_bytes(header() + steps)
    with pytest.raises(DataError, match=r"^image7_info.npy (cannot be read: |was refused)[^\n]+$"):
        read_info(tmp_path / "image7_info.npy")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    file = save(folder, features_of(2)[:, :4], info_of(2))
    for path in (file, folder / "image7_info.npy"):
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(raw) - 1))
            raw[start : start + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=8))
        path.write_bytes(raw)
    with suppress(DataError):
        read_regions(file)


def test_files_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = save(tmp_path, features_of(2), info_of(2))
    monkeypatch.setattr(regions_module, "MAX_FEATURES_BYTES", 100)
    with pytest.raises(DataError, match=r"image7.npy has \d+ bytes, more than 100"):
        read_regions(file)
    monkeypatch.setattr(regions_module, "MAX_INFO_BYTES", 100)
    with pytest.raises(DataError, match=r"image7_info.npy has \d+ bytes, more than 100"):
        read_info(tmp_path / "image7_info.npy")


def test_features_that_are_not_all_there_cost_nothing(tmp_path: Path) -> None:
    file = save(tmp_path, features_of(2), info_of(2))
    with file.open("wb") as stream:
        fields = {"descr": "<f4", "fortran_order": False, "shape": (2**31, 2048)}
        np.lib.format.write_array_header_1_0(stream, fields)
    with pytest.raises(DataError, match=r"image7.npy cannot be read"):
        read_regions(file)
