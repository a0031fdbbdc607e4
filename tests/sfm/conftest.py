"""Scenes with known cameras, points and matches, made by COLMAP's own generator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from matchlib.datasets.colmap_camera import ColmapCamera
from matchlib.features.types import Features
from matchlib.matching.types import Matches

Float64 = npt.NDArray[np.float64]


class FeaturesInMemory(dict[str, Features]):
    """As a FeatureReader."""

    def read(self, name: str) -> Features:
        return self[name]


class MatchesInMemory:
    """As a MatchReader."""

    def __init__(self, matches: list[tuple[str, str, Matches]]) -> None:
        self.matches = matches

    def items(self) -> Iterator[tuple[str, str, Matches]]:
        yield from self.matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Exact projections: keypoints in pixels whose first centre is at (0, 0), poses world to camera."""

    cameras: dict[str, ColmapCamera]
    poses: dict[str, Float64]
    points: Float64
    features: FeaturesInMemory
    matches: MatchesInMemory

    @property
    def names(self) -> list[str]:
        return sorted(self.cameras)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(itertools.combinations(self.names, 2))

    def known(self, names: list[str] | None = None) -> dict[str, tuple[ColmapCamera, Float64]]:
        return {name: (self.cameras[name], self.poses[name]) for name in names or self.names}


def features_at(keypoints: npt.NDArray[np.generic], size: tuple[int, int]) -> Features:
    return Features(
        keypoints=np.asarray(keypoints, np.float32).reshape(-1, 2),
        scores=np.ones(len(keypoints), np.float32),
        descriptors=np.ones((len(keypoints), 1), np.float32),
        image_size=size,
    )


def matches_of(index: npt.ArrayLike) -> Matches:
    rows = np.asarray(index, np.int64).reshape(-1, 2)
    return Matches(index=rows, scores=np.ones(len(rows), np.float32))


def synthesize(images: int = 6, points: int = 150, seed: int = 0) -> Scene:
    import pycolmap

    pycolmap.set_random_seed(seed)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, images
    options.num_points3D, options.num_points2D_without_point3D = points, 5
    model = pycolmap.synthesize_dataset(options)
    source = model.cameras[1]
    camera = ColmapCamera(
        model=source.model.name, width=source.width, height=source.height, params=tuple(source.params)
    )
    poses, features, rows = {}, FeaturesInMemory(), {}
    for image in model.images.values():
        T = np.eye(4)
        T[:3] = image.cam_from_world().matrix()
        poses[image.name] = T
        keypoints = np.array([point.xy for point in image.points2D]) - 0.5
        features[image.name] = features_at(keypoints, (camera.width, camera.height))
        rows[image.name] = {
            point.point3D_id: row for row, point in enumerate(image.points2D) if point.has_point3D()
        }
    matches = []
    for a, b in itertools.combinations(sorted(rows), 2):
        common = sorted(set(rows[a]) & set(rows[b]), key=lambda point: rows[a][point])
        matches.append((a, b, matches_of([(rows[a][point], rows[b][point]) for point in common])))
    return Scene(
        cameras=dict.fromkeys(sorted(rows), camera),
        poses=poses,
        points=np.array([point.xyz for point in model.points3D.values()]),
        features=features,
        matches=MatchesInMemory(matches),
    )


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Six images of 150 points, all seen by all."""
    return synthesize()


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    return synthesize


@pytest.fixture
def make_features() -> Callable[..., Features]:
    return features_at


@pytest.fixture
def make_matches() -> Callable[..., Matches]:
    return matches_of


@pytest.fixture
def in_memory() -> tuple[type[FeaturesInMemory], type[MatchesInMemory]]:
    return FeaturesInMemory, MatchesInMemory
