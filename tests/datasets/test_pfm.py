from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matchlib.datasets.pfm import read_pfm, write_pfm
from matchlib.errors import DataError, ShapeError


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=32))
)
def test_what_is_written_reads_back(tmp_path_factory, depth):
    path = tmp_path_factory.mktemp("pfm") / "d.pfm"
    write_pfm(path, depth)
    np.testing.assert_array_equal(read_pfm(path), depth)


def test_rows_run_bottom_up_and_both_byte_orders_are_read(tmp_path):
    rows = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)  # as stored: the first is the lowest
    for name, scale, kind in (("little", b"-1.0", "<f4"), ("big", b"1.0", ">f4")):
        path = tmp_path / f"{name}.pfm"
        path.write_bytes(b"Pf\n3 2\n" + scale + b"\n" + rows.astype(kind).tobytes())
        np.testing.assert_array_equal(read_pfm(path), [[4, 5, 6], [1, 2, 3]])


def test_opencv_reads_what_we_write_and_we_what_opencv_writes(tmp_path):
    depth = np.random.default_rng(0).uniform(1, 9, (5, 7)).astype(np.float32)
    write_pfm(tmp_path / "ours.pfm", depth)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "ours.pfm"), cv2.IMREAD_UNCHANGED), depth)
    cv2.imwrite(str(tmp_path / "theirs.pfm"), depth)
    np.testing.assert_array_equal(read_pfm(tmp_path / "theirs.pfm"), depth)


def test_pixels_that_look_like_white_space_are_not_skipped(tmp_path):
    depth = np.frombuffer(b"\n\n\n\n \n \n", dtype="<f4").reshape(1, 2).copy()
    write_pfm(tmp_path / "d.pfm", depth)
    np.testing.assert_array_equal(read_pfm(tmp_path / "d.pfm"), depth)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "PFM header"),
        (b"P5\n2 2\n255\nabcd", "PFM header"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "one channel"),
        (b"Pf\n2 2\n-1.0\n" + bytes(15), r"expected 28 bytes for 2 x 2, got 27"),
        (b"Pf\n2 2\n-1.0\n" + bytes(17), "got 29"),
        (b"Pf\n2 2\n0\n" + bytes(16), "scale other than 0"),
        (b"<html>not here</html>", "PFM header"),
    ],
)
def test_foreign_and_cut_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.pfm"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pfm(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_wrong_shape(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_pfm(tmp_path / "none.pfm")
    with pytest.raises(ShapeError):
        write_pfm(tmp_path / "x.pfm", np.zeros((2, 2, 3), np.float32))
    assert list(tmp_path.iterdir()) == []
