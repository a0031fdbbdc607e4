"""Settings of warps: published defaults, YAML round trip, refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest

from matchlib.errors import ConfigError
from matchlib.photo_pairs.config import (
    AdaptationWarpConfig,
    DescriptorSpacePhotometricConfig,
    DescriptorSpaceWarpConfig,
    PhotometricConfig,
    SuperPointPhotometricConfig,
    WarpConfig,
)
from matchlib.typed_yaml import dump_typed, load_typed


def test_the_settings_survive_yaml():
    config = WarpConfig(sampler="superpoint", photometric=PhotometricConfig(style="superpoint"), border_px=2)
    assert load_typed(WarpConfig, dump_typed(config), "file") == config


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (WarpConfig, {"border_px": -1}, "border_px"),
        (WarpConfig, {"min_valid_share": 1.5}, "min_valid_share"),
        (WarpConfig, {"attempts": 0}, "attempts"),
        (DescriptorSpaceWarpConfig, {"scale_ratio": (0.9, 0.8)}, "scale_ratio"),
        (DescriptorSpaceWarpConfig, {"perspective_ratio": (0.0, 0.8)}, "perspective_ratio"),
        (DescriptorSpaceWarpConfig, {"max_angle_rad": 2.0}, "max_angle_rad"),
        (AdaptationWarpConfig, {"patch_ratio": 0.0}, "patch_ratio"),
        (AdaptationWarpConfig, {"perspective_amplitude_x": 0.45}, "perspective_amplitude_x"),
        (AdaptationWarpConfig, {"scale_candidates": 0}, "scale_candidates"),
        (DescriptorSpacePhotometricConfig, {"jpeg_quality": (0, 50)}, "jpeg_quality"),
        (DescriptorSpacePhotometricConfig, {"blur_kernels": (3, 4)}, "blur_kernels"),
        (DescriptorSpacePhotometricConfig, {"blur_weights": (1.0,)}, "blur_weights"),
        (DescriptorSpacePhotometricConfig, {"noise_probability": 2.0}, "noise_probability"),
        (SuperPointPhotometricConfig, {"motion_blur_max_length": 4}, "motion_blur_max_length"),
        (SuperPointPhotometricConfig, {"contrast_range": (1.5, 0.3)}, "contrast_range"),
    ],
)
def test_impossible_settings_are_refused_by_key(cls, values, message):
    with pytest.raises(ConfigError, match=f"^{message}: expected"):
        cls(**values)


def test_a_nested_fault_is_named_by_its_path():
    with pytest.raises(ConfigError, match=r"photometric\.descriptor_space\.jpeg_quality"):
        load_typed(WarpConfig, {"photometric": {"descriptor_space": {"jpeg_quality": [90, 10]}}}, "file")


@pytest.mark.parametrize(
    ("views", "changed"), [("both", [True, True]), ("first", [True, False]), ("second", [False, True])]
)
def test_views_says_which_view_is_changed(views, changed):
    assert [PhotometricConfig(views=views).changes_view(view) for view in (0, 1)] == changed
    assert not PhotometricConfig(style="none", views=views).changes_view(0)


def test_the_settings_import_no_torch():
    modules = "matchlib.photo_pairs.config, matchlib.datasets.photos"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'cv2'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
