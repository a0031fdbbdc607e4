"""Photometric changes: each against OpenCV, the standard library or a closed form; then the two styles."""

from __future__ import annotations

import colorsys
import dataclasses

import cv2
import numpy as np
import pytest
import torch

from matchlib.errors import ShapeError
from matchlib.photo_pairs import image_changes as change
from matchlib.photo_pairs.config import (
    DescriptorSpacePhotometricConfig,
    PhotometricConfig,
    SuperPointPhotometricConfig,
)
from matchlib.photo_pairs.jpeg import jpeg
from matchlib.photo_pairs.photometric import change_view, superpoint_changes


@pytest.fixture
def image(picture) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous().float() / 255


def as_levels(image: torch.Tensor) -> np.ndarray:
    return (image * 255).permute(1, 2, 0).numpy()


# ---------------------------------------------------------------- single changes
@pytest.mark.parametrize("quality", [5, 15, 40, 74, 95])
@pytest.mark.parametrize("size", [(160, 120), (101, 67)])
def test_jpeg_is_what_opencv_reads_after_writing(picture, quality, size):
    original = np.ascontiguousarray(picture[: size[1], : size[0]])
    data = cv2.imencode(".jpg", original[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    tensor = torch.from_numpy(original).permute(2, 0, 1).float() / 255
    ours = as_levels(jpeg(tensor, quality)).round()
    damage = np.abs(expected - original).mean()
    assert np.abs(ours - expected).mean() < min(
        1.5, 0.5 * damage
    )  # rounding and chroma filters differ a little
    assert np.abs(ours - original).mean() == pytest.approx(damage, rel=0.1)


def test_jpeg_refuses_other_qualities(image):
    with pytest.raises(ShapeError, match="quality"):
        jpeg(image, 0)


@pytest.mark.parametrize("width", [3, 5, 7, 9, 11])
def test_gaussian_blur_equals_opencv(image, width):
    expected = cv2.GaussianBlur(as_levels(image), (width, width), 0, borderType=cv2.BORDER_REFLECT_101)
    # For narrow windows OpenCV takes rounded weights, e.g. 1/4, 1/2, 1/4 where the formula gives .239, .522, .239.
    assert np.abs(as_levels(change.gaussian_blur(image, width)) - expected).mean() < 0.5
    weights = change.gaussian_kernel(width, change.deviation_of(width)).numpy()
    exact = cv2.sepFilter2D(as_levels(image), -1, weights, weights, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(as_levels(change.gaussian_blur(image, width)), exact, atol=1e-2)


@pytest.mark.parametrize("length", [3, 9])
def test_motion_blur_is_a_mean_along_a_line(image, length):
    for direction, kernel in {
        "horizontal": np.full((1, length), 1 / length),
        "vertical": np.full((length, 1), 1 / length),
        "diagonal": np.eye(length) / length,
        "antidiagonal": np.eye(length)[::-1] / length,
    }.items():
        expected = cv2.filter2D(as_levels(image), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        ours = as_levels(change.motion_blur(image, length, direction))
        np.testing.assert_allclose(ours, expected, atol=1e-2)
    tapered = change.motion_blur(image, length, "horizontal", is_tapered=True)
    assert (tapered - image).abs().mean() < (
        change.motion_blur(image, length, "horizontal") - image
    ).abs().mean()


def test_windows_may_be_wider_than_the_image():
    flat = torch.full((3, 4, 5), 0.25)
    torch.testing.assert_close(change.gaussian_blur(flat, 31), flat)


@pytest.mark.parametrize("share", [-0.2, 0.0, 0.07, 0.5])
def test_hue_turns_as_in_the_standard_library(share):
    random = np.random.default_rng(0)
    pixels = np.concatenate([random.random((40, 3)), [[0, 0, 0], [1, 1, 1], [0.4, 0.4, 0.4], [1, 0, 0]]])
    expected = []
    for pixel in pixels:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + share) % 1, s, v))
    ours = change.shift_hue(torch.from_numpy(pixels.T[:, None].copy()), share)[:, 0].T
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


def test_levels_change_by_their_formulas(image):
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    torch.testing.assert_close(change.scale_saturation(image, 0.0), luma.expand(3, -1, -1))
    torch.testing.assert_close(change.scale_saturation(image, 1.0), image)
    torch.testing.assert_close(change.scale_contrast(image, 0.0), luma.mean().expand_as(image))
    halved = change.scale_contrast(image, 0.5, about="channels")
    torch.testing.assert_close(halved.std(dim=(1, 2)), image.std(dim=(1, 2)) / 2)
    torch.testing.assert_close(change.scale_brightness(image, 2.0), (2 * image).clamp(max=1))


def test_speckle_blackens_and_whitens_the_share_it_says(image):
    field = torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(0))
    changed = change.speckle(image, field, 0.1)
    assert ((changed == 0).all(dim=0) | (field >= 0.1)).all()
    assert ((changed == 1).all(dim=0) | (field <= 0.9)).all()
    untouched = (field >= 0.1) & (field <= 0.9)
    torch.testing.assert_close(changed[:, untouched], image[:, untouched])


def test_shade_is_close_to_ellipses_drawn_and_blurred_by_opencv():
    width, height, kernel = 160, 120, 61
    ellipses = np.array([[60.0, 50, 25, 12, 0.5], [110, 80, 20, 20, 0.0]])
    mask = np.zeros((height, width), np.float32)
    for x, y, a, b, angle in ellipses:
        cv2.ellipse(mask, (int(x), int(y)), (int(a), int(b)), np.degrees(angle), 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (kernel, kernel), 0, borderType=cv2.BORDER_REFLECT_101)
    flat = torch.full((3, height, width), 0.5)
    for transparency in (0.4, -0.4):
        shaded = change.shade(flat, ellipses, transparency=transparency, kernel_width=kernel)
        np.testing.assert_allclose(shaded[0].numpy(), 0.5 * (1 - transparency * mask), atol=0.02)


# ---------------------------------------------------------------- styles
@pytest.mark.parametrize("style", ["descriptor_space", "superpoint"])
def test_a_style_is_reproducible_in_range_and_different_for_each_view(image, style):
    config = PhotometricConfig(style=style)
    distinct = set()
    for seed in range(12):
        for view in (0, 1):
            changed = change_view(image, config, seed=seed, view=view)
            assert changed.shape == image.shape and changed.dtype == torch.float32
            assert changed.min() >= 0 and changed.max() <= 1
            assert torch.equal(changed, change_view(image, config, seed=seed, view=view))
            distinct.add(changed.numpy().tobytes())
    assert len(distinct) >= 15  # of 24; some draws of descriptor_space change nothing


def test_all_changes_can_be_switched_off(image):
    for settings in (DescriptorSpacePhotometricConfig(), SuperPointPhotometricConfig()):
        names = [field.name for field in dataclasses.fields(settings)]
        off = dataclasses.replace(settings, **{name: 0.0 for name in names if name.endswith("_probability")})
        style = "superpoint" if isinstance(off, SuperPointPhotometricConfig) else "descriptor_space"
        config = PhotometricConfig(style=style, **{style: off})
        assert torch.equal(change_view(image, config, seed=3, view=0), image)
    assert torch.equal(change_view(image, PhotometricConfig(style="none"), seed=3, view=0), image)


@pytest.mark.parametrize("kind", ["brightness", "contrast", "speckle", "gaussian", "shade", "motion_blur"])
def test_each_change_of_superpoint_can_be_had_alone(image, kind):
    names = [field.name for field in dataclasses.fields(SuperPointPhotometricConfig)]
    only = {name: float(name == f"{kind}_probability") for name in names if name.endswith("_probability")}
    config = PhotometricConfig(style="superpoint", superpoint=SuperPointPhotometricConfig(**only))
    changes = [change_view(image, config, seed=seed, view=0) for seed in range(4)]
    assert any(not torch.equal(changed, image) for changed in changes)


def test_superpoint_changes_treat_grey_images_like_three_equal_channels(image):
    for seed in range(6):
        single = superpoint_changes(image[:1], SuperPointPhotometricConfig(), np.random.default_rng(seed))
        triple = image[:1].expand(3, -1, -1)
        triple = superpoint_changes(triple, SuperPointPhotometricConfig(), np.random.default_rng(seed))
        torch.testing.assert_close(triple, single.expand(3, -1, -1))


def test_descriptor_space_changes_come_as_often_as_published(image):
    """JPEG, blur, noise and jitter with .5, .5, .34, .34: nothing at all happens to .5 * .5 * .66 * .66 = 10.9 %."""
    small = image[:, :16, :16].contiguous()
    config = PhotometricConfig()
    untouched = sum(torch.equal(change_view(small, config, seed=s, view=0), small) for s in range(400))
    assert untouched / 400 == pytest.approx(0.109, abs=0.055)


def test_gaussian_noise_is_the_same_in_all_channels_and_as_strong_as_drawn():
    flat = torch.full((3, 100, 120), 0.5)
    settings = DescriptorSpacePhotometricConfig(
        jpeg_probability=0,
        blur_probability=0,
        noise_probability=1,
        noise_gaussian_share=1,
        jitter_probability=0,
    )
    config = PhotometricConfig(descriptor_space=settings)
    variances = []
    for seed in range(60):
        noise = (change_view(flat, config, seed=seed, view=0) - flat) * 255
        assert torch.equal(noise[0], noise[1]) and torch.equal(noise[0], noise[2])
        variances.append(float(noise[0].var()))
    assert max(variances) < 80 and np.mean(variances) == pytest.approx(38.4, rel=0.2)
