from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from matchlib.datasets.images import read_image, write_image
from matchlib.errors import DataError, ShapeError


@pytest.fixture
def picture():
    """Smooth, so that JPEG keeps it, and different in each channel and corner."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * x, 5 * y, 255 - 3 * x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.ppm", "a.bmp", "a.tif"])
def test_lossless_formats_read_back(tmp_path, picture, name):
    write_image(tmp_path / name, picture)
    np.testing.assert_array_equal(read_image(tmp_path / name), picture)


def test_jpeg_is_close_and_channels_are_in_order(tmp_path, picture):
    write_image(tmp_path / "a.jpg", picture)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).mean() < 3
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.jpg")).shape, picture.shape)
    assert np.abs(np.array(Image.open(tmp_path / "a.jpg")).astype(int) - picture).mean() < 3


def test_grey_alpha_palette_and_sixteen_bit(tmp_path, picture):
    grey = picture[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "grey_alpha.png")
    cv2.imwrite(str(tmp_path / "deep.png"), picture[:, :, ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep_grey.png"), grey.astype(np.uint16) * 257)
    three = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), three)
    np.testing.assert_array_equal(read_image(tmp_path / "grey_alpha.png"), three)
    np.testing.assert_array_equal(read_image(tmp_path / "deep_grey.png"), three)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), picture)


def test_a_pgm_called_ppm_and_cmyk(tmp_path, picture):
    grey = picture[:, :, 0]
    (tmp_path / "pgm.ppm").write_bytes(b"P5\n60 40\n255\n" + grey.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "pgm.ppm")[:, :, 1], grey)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 6


def test_exif_rotation_is_not_applied_because_cameras_speak_of_stored_pixels(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == picture.shape


@pytest.mark.parametrize("kind", ["jpg", "png", "ppm", "bmp"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
def test_truncated_files_are_refused(tmp_path, kind, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / f"a.{kind}", noise)
    data = (tmp_path / f"a.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=f"cut.{kind}"):
        read_image(path)


def test_a_preview_inside_a_jpeg_does_not_hide_that_the_rest_is_cut(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    preview = io.BytesIO()
    Image.fromarray(noise[:8, :8]).save(preview, "JPEG")
    write_image(tmp_path / "a.jpg", noise)
    data = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + (2 + len(preview.getvalue())).to_bytes(2, "big") + preview.getvalue()
    (tmp_path / "whole.jpg").write_bytes(data[:2] + segment + data[2:])
    (tmp_path / "cut.jpg").write_bytes((data[:2] + segment + data[2:])[:-100])
    assert read_image(tmp_path / "whole.jpg").shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated JPEG"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", bytes(100)])
def test_foreign_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match="a.jpg"):
        read_image(tmp_path / "a.jpg")


def test_missing_file_float_image_and_wrong_arrays(tmp_path, picture):
    with pytest.raises(DataError, match="none.png: cannot be read"):
        read_image(tmp_path / "none.png")
    cv2.imwrite(str(tmp_path / "f.tiff"), picture.astype(np.float32))
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_image(tmp_path / "f.tiff")
    with pytest.raises(ShapeError, match="uint8"):
        write_image(tmp_path / "x.png", picture.astype(np.float32))
    with pytest.raises(DataError, match="cannot be written as '.xyz'"):
        write_image(tmp_path / "x.xyz", picture)
    assert not list(tmp_path.glob("x*"))
