"""Features and matches in the benchmark's own binaries, both ways: any program's features can be evaluated here, and
features of this project by its scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from matchlib.completion import digest_file, fingerprint
from matchlib.datasets.eth_benchmark import (
    EthScene,
    descriptors_path,
    keypoints_path,
    list_matches,
    matches_path,
    read_descriptors,
    read_keypoints,
    read_matches,
    write_descriptors,
    write_keypoints,
    write_matches,
)
from matchlib.datasets.images import read_image
from matchlib.errors import DataError
from matchlib.features.store import FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching.types import Matches
from matchlib.sfm.database_rows import FeatureSource, MatchSource

REVISION = 1


def export_scene(
    scene: EthScene, features: FeatureSource, folder: Path, *, matches: MatchSource | None = None
) -> int:
    """Write features, and matches if given, as the benchmark's scripts read them: `folder` is their scene folder.

    Images without features get empty files. Scale is 1 and orientation 0, which our features do not have: nothing but
    the cutting of patches uses them. Returns the number of images. Raises DataError.
    """
    dimension = 0
    without = []
    for name in scene.names:
        if name not in features:
            without.append(name)
            continue
        image = features.read(name)
        dimension = image.descriptors.shape[1]
        keypoints = np.zeros((len(image), 4), np.float32)
        keypoints[:, :2], keypoints[:, 2] = image.keypoints, 1
        write_keypoints(keypoints_path(folder, name), keypoints)
        write_descriptors(descriptors_path(folder, name), image.descriptors)
    for name in without:
        write_keypoints(keypoints_path(folder, name), np.zeros((0, 4), np.float32))
        write_descriptors(descriptors_path(folder, name), np.zeros((0, dimension), np.float32))
    for name0, name1, found in matches.items() if matches is not None else ():
        write_matches(matches_path(folder, name0, name1), found.index)
    return len(scene.names)


class BinaryFeatures:
    """Features that lie in a scene's `keypoints/` and `descriptors/`; read lazily.

    Scores, which the layout lacks, are 1. Descriptors are brought to unit length.
    """

    def __init__(self, scene: EthScene) -> None:
        self.scene = scene
        self.names = tuple(name for name in scene.names if keypoints_path(scene.folder, name).is_file())
        if not self.names:
            raise DataError(
                f"{scene.folder / 'keypoints'}: expected <image>.bin of the {len(scene.names)} images, found none"
            )
        self._known = frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def read(self, name: str) -> Features:
        """Features of one image. Raises DataError naming the file for unequal counts and values that are not finite."""
        path = descriptors_path(self.scene.folder, name)
        keypoints = read_keypoints(keypoints_path(self.scene.folder, name))
        descriptors = read_descriptors(path)
        if len(keypoints) != len(descriptors):
            raise DataError(
                f"{path}: expected {len(keypoints)} descriptors, one per keypoint, got {len(descriptors)}"
            )
        for what, values in (("keypoints", keypoints[:, :2]), ("descriptors", descriptors)):
            if not np.isfinite(values).all():
                raise DataError(f"{path}: {what} of '{name}': expected finite values; extract them again")
        height, width = read_image(self.scene.images / name).shape[:2]
        lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
        return Features(
            keypoints=keypoints[:, :2].copy(),
            scores=np.ones(len(keypoints), np.float32),
            descriptors=(descriptors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32),
            image_size=(width, height),
        )


class BinaryMatches:
    """Matches that lie in a scene's `matches/`, as a source for `database_step`; of one pair in memory at a time."""

    def __init__(self, scene: EthScene) -> None:
        self.scene = scene

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs that have a file, sorted by file. Raises DataError for files of other images."""
        return tuple((name0, name1) for name0, name1, _ in list_matches(self.scene.folder, self.scene.names))

    def items(self) -> Iterator[tuple[str, str, Matches]]:
        """(image0, image1, matches) of every file; scores, which the layout lacks, are 1."""
        for name0, name1, path in list_matches(self.scene.folder, self.scene.names):
            index = read_matches(path).astype(np.int64)
            order = np.argsort(index[:, 0], kind="stable")
            yield name0, name1, Matches(index=index[order], scores=np.ones(len(index), np.float32))


def import_features(scene: EthScene, out: Path, *, label: str) -> str:
    """Write the features in a scene's binaries as a features file of ours, for matching and every other evaluation.

    Streams, resumes after a kill, appears finished or not at all. Returns the digest of the content. Raises DataError.
    """
    source = BinaryFeatures(scene)
    inputs = [
        path_of(scene.folder, name) for name in source.names for path_of in (keypoints_path, descriptors_path)
    ]
    settings = {"layout": "eth_benchmark", "label": label, "names": source.names}
    mark = fingerprint(stage="import_features", revision=REVISION, settings=settings, inputs=inputs)
    with FeatureWriter(out, StoreHeader(method=label, fingerprint=mark)) as writer:
        for name in source.names:
            if name not in writer.kept:
                writer.add(name, source.read(name), image_digest=digest_file(scene.images / name))
        return writer.finish()
