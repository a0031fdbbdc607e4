"""The contact sheet shows both views, their masks, labels and true correspondences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import find_objects, label

from matchlib.photo_pairs.batch import HomographyBatch
from matchlib.photo_pairs.pictures import sample_sheet


@pytest.fixture
def batch() -> HomographyBatch:
    """Three black pairs of 60 x 40 pixels; view 1 shows everything 10 px further right."""
    H = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    H[:, 0, 2] = 10
    valid = torch.ones(3, 40, 60, dtype=torch.bool)
    return HomographyBatch(
        image0=torch.zeros(3, 3, 40, 60),
        image1=torch.zeros(3, 3, 40, 60),
        H_0to1=H,
        valid0=valid,
        valid1=valid.clone(),
        seeds=(1, 2, 3),
        names=("a", "b", "c"),
    )


def test_the_sheet_has_a_row_per_pair(batch):
    assert sample_sheet(batch).shape == (3 * 40 + 2 * 4, 2 * 60 + 4, 3)
    sheet = sample_sheet(batch, rows=2)
    assert sheet.shape == (84, 124, 3) and sheet.dtype == np.uint8


def test_lines_join_true_correspondences_and_only_those(batch):
    tall = {"image0": torch.zeros(1, 3, 600, 60), "valid0": torch.ones(1, 600, 60, dtype=torch.bool)}
    one = HomographyBatch(
        **tall,
        image1=tall["image0"].clone(),
        valid1=tall["valid0"].clone(),
        H_0to1=batch.H_0to1[:1],
        seeds=(1,),
        names=("a",),
    )
    drawn = sample_sheet(one).any(axis=2)
    drawn[:, 60:64] = True  # the white gap; lines cross it, so each is one component of the rest
    drawn[~drawn[:, 58]] = False
    components, count = label(drawn)
    assert count == 12
    for rows, columns in find_objects(components):
        assert rows.stop - rows.start < 12  # horizontal, with a dot at each end
        length = columns.stop - columns.start - 7
        assert length == pytest.approx(60 + 4 + 10, abs=2)
        assert columns.start + 3 < 50  # x < 50 in view 0: beyond, the partner has left view 1
    blind = sample_sheet(dataclasses.replace(one, valid1=~one.valid1))
    assert not blind[:, :60].any()  # nothing is known, nothing is drawn


def test_masks_and_labels_are_drawn_in_the_view_they_belong_to(batch):
    valid0 = batch.valid0.clone()
    valid0[:, :, :30] = False
    nothing = torch.zeros_like(batch.valid1)
    masked = sample_sheet(dataclasses.replace(batch, valid0=valid0, valid1=nothing), rows=1)
    assert masked[:, 30].any() and not masked[:, :29].any() and not masked[:, 64:].any()
    labels = (torch.tensor([[45.0, 20.0]]),) * 3
    none = (torch.empty(0, 2),) * 3
    labelled = dataclasses.replace(batch, valid1=nothing, keypoints0=none, keypoints1=labels)
    sheet = sample_sheet(labelled, rows=1)
    assert sheet[17:24, 64 + 42 : 64 + 49].any()
    sheet[17:24, 64 + 42 : 64 + 49] = 0
    sheet[:, 60:64] = 0
    assert not sheet.any()
