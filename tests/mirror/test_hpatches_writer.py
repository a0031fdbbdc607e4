"""Photo-warp sequences: the written homographies must explain the written pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from matchlib.datasets.hpatches import list_sequences, read_sequence
from matchlib.datasets.images import read_image
from matchlib.mirror.config import HPatchesMirrorConfig
from matchlib.mirror.hpatches_writer import (
    draw_homography,
    sequence_names,
    warp_plane,
    write_hpatches_sequence,
)
from matchlib.mirror.textures import load_photograph

SIZE = (240, 180)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    root = tmp_path_factory.mktemp("hpatches")
    config = HPatchesMirrorConfig(illumination_sequences=2, viewpoint_sequences=2, image_size=SIZE)
    for name, photograph in sequence_names(config).items():
        write_hpatches_sequence(root, name, photograph, config, seed=7)
    return {name: read_sequence(root, name) for name in list_sequences(root)}


def grey(path):
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)


def test_names_and_sizes(sequences):
    assert [name[:2] for name in sequences] == ["i_", "i_", "v_", "v_"]
    for sequence in sequences.values():
        assert all(read_image(path).shape == (SIZE[1], SIZE[0], 3) for path in sequence.image_paths)


def test_image_1_warped_by_the_homography_is_image_k(sequences):
    for name, sequence in sequences.items():
        first = grey(sequence.image_paths[0]).astype(np.float32)
        for path, H in zip(sequence.image_paths[1:], sequence.homographies, strict=True):
            warped = cv2.warpPerspective(first, H, SIZE)
            known = cv2.warpPerspective(np.ones_like(first), H, SIZE) > 0.99
            values = grey(path).astype(np.float32)
            assert known.mean() > 0.3, (name, path)
            if name.startswith("v_"):
                assert np.corrcoef(warped[known], values[known])[0, 1] > 0.95, (name, path)
            else:  # light changes by place; edges stay where they are
                edges = [
                    cv2.Laplacian(cv2.GaussianBlur(i, (0, 0), 1.5), cv2.CV_32F) for i in (warped, values)
                ]
                assert np.corrcoef(edges[0][known], edges[1][known])[0, 1] > 0.5, (name, path)


def test_illumination_changes_light_and_nothing_else(sequences):
    for name, sequence in sequences.items():
        if name.startswith("i_"):
            np.testing.assert_array_equal(sequence.homographies, np.broadcast_to(np.eye(3), (5, 3, 3)))
            first = read_image(sequence.image_paths[0]).astype(int)
            changes = [
                np.abs(read_image(path).astype(int) - first).mean() for path in sequence.image_paths[1:]
            ]
            assert max(changes) > 15, name
            assert changes[0] < max(changes), name


def test_no_picture_has_an_empty_margin(sequences):
    for sequence in sequences.values():
        for path in sequence.image_paths:
            border = np.concatenate([part.ravel() for part in (grey(path)[:3], grey(path)[-3:])])
            assert (border == 0).mean() < 0.5, path


def test_sift_matches_follow_the_homography(sequences):
    """Mutual nearest neighbours of SIFT: most of them within 3 px on average, as on the real sequences."""
    sift = cv2.SIFT_create(2000)
    accuracy = []
    for name, sequence in sequences.items():
        features = [sift.detectAndCompute(grey(path), None) for path in sequence.image_paths]
        keypoints0, descriptors0 = features[0]
        for (keypoints1, descriptors1), H in zip(features[1:], sequence.homographies, strict=True):
            if descriptors1 is None or not name.startswith("v_"):
                continue
            matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(descriptors0, descriptors1)
            xy0 = np.array([keypoints0[m.queryIdx].pt for m in matches])
            xy1 = np.array([keypoints1[m.trainIdx].pt for m in matches])
            moved = np.column_stack([xy0, np.ones(len(xy0))]) @ H.T
            error = np.linalg.norm(moved[:, :2] / moved[:, 2:] - xy1, axis=1)
            accuracy.append((error <= 3).mean())
    assert 0.4 < np.mean(accuracy) < 0.99


def test_warp_is_exact_to_a_fraction_of_a_pixel():
    """A shift of the plane by whole pixels gives the same picture, shifted by whole pixels."""
    plane = load_photograph("camera.png")
    base = np.array([[0.9, 0, 40.0], [0, 0.9, 60.0], [0, 0, 1]])
    shifted = base @ np.array([[1, 0, 12.0], [0, 1, 7.0], [0, 0, 1]])
    first, second = warp_plane(plane, base, (200, 150)), warp_plane(plane, shifted, (200, 150))
    np.testing.assert_allclose(first[7:, 12:].astype(int), second[:-7, :-12].astype(int), atol=1)


def test_stronger_homographies_move_more():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0, 1], [239, 0, 1], [239, 179, 1], [0, 179, 1.0]])

    def movement(strength):
        total = 0.0
        for _ in range(30):
            moved = corners @ draw_homography(rng, SIZE, strength).T
            assert (moved[:, 2] > 0).all()
            total += np.linalg.norm(moved[:, :2] / moved[:, 2:] - corners[:, :2], axis=1).mean()
        return total / 30

    assert movement(0.2) < movement(0.6) < movement(1.0)


def test_a_photograph_that_comes_again_gets_a_name_of_its_own():
    names = sequence_names(HPatchesMirrorConfig(illumination_sequences=0, viewpoint_sequences=9))
    assert len(names) == 9
    assert "v_astronaut2" in names
