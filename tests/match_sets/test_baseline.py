"""Which cameras stand apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from matchlib.datasets.types import Camera, Scene, SceneImage
from matchlib.match_sets.baseline import _joined, camera_distances, has_baseline


def chained(distance: np.ndarray) -> np.ndarray:
    """`has_baseline` of the pairs (0, 1), (1, 2), ..."""
    first = np.arange(len(distance))
    return has_baseline(distance, first, first + 1)


def scene_at(centres: np.ndarray, rotations: np.ndarray) -> Scene:
    """Cameras with ids 10, 20, ... at these places."""
    images = {}
    for number, (centre, R) in enumerate(zip(centres, rotations, strict=True)):
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R, -R @ centre
        camera = Camera(K=np.eye(3), T_world_to_cam=T, size=(10, 10))
        index = 10 * (number + 1)
        images[index] = SceneImage(index=index, image_path=Path("x"), camera=camera)
    return Scene(name="s", images=images)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-6, 6),
    st.sampled_from([0.0, 1.0, 1e3]),
)
def test_distances_do_not_depend_on_how_cameras_are_turned(seed: int, exponent: float, far: float) -> None:
    rng = np.random.default_rng(seed)
    centres = 10**exponent * (rng.normal(size=(6, 3)) + far)
    centres[4] = centres[1]
    rotations = Rotation.random(6, random_state=rng).as_matrix()
    index0, index1 = np.array([10, 20, 20, 60]), np.array([30, 50, 40, 10])
    found = camera_distances(scene_at(centres, rotations), index0, index1)
    expected = np.linalg.norm(centres[index1 // 10 - 1] - centres[index0 // 10 - 1], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert found[1] == 0
    assert has_baseline(found, index0, index1).tolist() == [True, False, True, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(-8, 8))
def test_scene_units_do_not_matter(lengths: list[float], exponent: float) -> None:
    distance = np.array([*lengths, 0.0, 0.0])
    scaled = chained(10**exponent * distance)
    shares = distance / np.median(lengths)
    clear = np.abs(shares - 1e-3) > 1e-9
    assert (scaled == (shares > 1e-3))[clear].all() and not scaled[-2:].any()


def test_many_pairs_at_one_place_do_not_hide_the_others() -> None:
    distance = np.array([0.0] * 50 + [1.0, 2.0, 3.0, 1e-4])
    assert chained(distance).tolist() == [False] * 50 + [True, True, True, False]


def test_a_reconstruction_in_another_unit_is_measured_by_itself() -> None:
    """Two sub-models that no pair joins, one 10,000 times smaller, each with one pair that is too close."""
    distance = np.array([1.0, 2.0, 3.0, 1e-4, 1e-4, 2e-4, 3e-4, 1e-8])
    index0, index1 = np.array([0, 1, 2, 3, 10, 11, 12, 13]), np.array([1, 2, 3, 4, 11, 12, 13, 14])
    expected = [True, True, True, False] * 2
    assert has_baseline(distance, index0, index1).tolist() == expected
    joined = has_baseline(np.append(distance, 1.0), np.append(index0, 4), np.append(index1, 10))
    assert joined.tolist() == [*[True] * 7, False, True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=30))
def test_pairs_are_joined_by_chains(edges: list[tuple[int, int]]) -> None:
    """Against SciPy's connected components."""
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    labels = _joined(ends[:, 0], ends[:, 1])
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(26, 26))
    expected = connected_components(graph, directed=False)[1][ends[:, 0]]
    assert ((labels[:, None] == labels) == (expected[:, None] == expected)).all()


@pytest.mark.parametrize("distance", [[], [0.0], [0.0, 0.0]])
def test_nothing_apart(distance: list[float]) -> None:
    assert chained(np.array(distance)).tolist() == [False] * len(distance)
    assert camera_distances(
        scene_at(np.zeros((0, 3)), np.zeros((0, 3, 3))), *2 * [np.zeros(0, int)]
    ).shape == (0,)


def test_a_panorama_has_one_place() -> None:
    """Written down as R and t, its centres agree only up to rounding."""
    rotations = Rotation.random(4, random_state=0).as_matrix()
    scene = scene_at(np.tile([100.0, 200.0, -50.0], (4, 1)), rotations)
    found = camera_distances(scene, np.array([10, 10, 20]), np.array([20, 30, 40]))
    assert (found == 0).all()
