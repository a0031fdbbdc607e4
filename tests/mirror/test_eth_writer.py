"""The demo's scenes to reconstruct: the unpacked archives against the world that they were drawn from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from matchlib.datasets.eth_benchmark import EthScene, list_scenes, read_scene, read_truth
from matchlib.datasets.images import read_image
from matchlib.datasets.types import Camera
from matchlib.downloads.config import Archive, read_source
from matchlib.downloads.unpack import unpack_archive
from matchlib.errors import ConfigError
from matchlib.evaluation.reconstruction import ReconstructionResult
from matchlib.evaluation.reconstruction_config import RECONSTRUCTION_PROTOCOLS
from matchlib.evaluation.reconstruction_published import published_rows
from matchlib.evaluation.reconstruction_run import evaluate_scene, statistics_step
from matchlib.features.config import SiftConfig
from matchlib.features.sift import SiftExtractor
from matchlib.features.types import Features
from matchlib.matching.matcher import match_descriptors
from matchlib.matching.types import Matches
from matchlib.mirror.config import ETH_SCENES, EthMirrorConfig, MirrorConfig
from matchlib.mirror.eth_writer import draw_eth_scene, eth_archive, eth_scene_names, write_eth_scene
from matchlib.mirror.render import render_depth
from matchlib.mirror.scene import MirrorScene
from matchlib.mirror.visibility import warp_points
from matchlib.sfm.colmap import read_model
from matchlib.sfm.statistics import centres_of

PROTOCOL = RECONSTRUCTION_PROTOCOLS["posfeat"]
DESCRIPTION = Path(__file__).parents[2] / "config" / "datasets" / "demo_eth.yaml"


@pytest.fixture(scope="module")
def root(mirror, tmp_path_factory) -> Path:
    """The archive of the tiny world's one scene, unpacked as the demo's description says."""
    out = tmp_path_factory.mktemp("eth")
    archive = read_source(DESCRIPTION).archives[0]
    assert isinstance(archive, Archive)
    unpack_archive(archive, [mirror.archives / archive.file_names()[0]], out, fingerprint="x")
    return out


def test_the_description_names_the_archives_of_the_default_world() -> None:
    described = [archive.name for archive in read_source(DESCRIPTION).archives]
    assert described == [eth_archive(name) for name in eth_scene_names(EthMirrorConfig())]


def test_the_archive_has_upstreams_layout_and_no_more_than_asked_for(mirror) -> None:
    assert [path.name for path in sorted(mirror.archives.glob("Strecha-*"))] == ["Strecha-Fountain.zip"]
    with zipfile.ZipFile(mirror.archives / "Strecha-Fountain.zip") as packed:
        assert packed.namelist() == [
            *(f"Fountain/images/{k:04d}.png" for k in range(3)),
            "Fountain/true_poses.txt",
        ]


def test_true_poses_map_one_image_onto_the_other(root: Path, tiny_config: MirrorConfig) -> None:
    """The world is drawn again from its seed: the same points must have the same colour in both unpacked images."""
    assert list_scenes(root) == ("Fountain",)
    scene, world = read_scene(root, "Fountain"), draw_eth_scene(tiny_config, "Fountain")
    truth = read_truth(scene)
    assert truth is not None and tuple(truth) == scene.names and len(scene.names) == 3
    for name, camera in zip(scene.names, world.cameras, strict=True):
        np.testing.assert_allclose(truth[name], camera.T_world_to_cam, rtol=0, atol=1e-12)
        assert read_image(scene.images / name).shape == (96, 128, 3)
    grid = np.stack(np.meshgrid(np.arange(4, 124), np.arange(4, 92)), axis=-1).reshape(-1, 2).astype(float)
    found, visible = warp_points(world.world, world.cameras[0], world.cameras[1], grid)
    points0, points1 = grid[visible].astype(int), np.rint(found[visible]).astype(int)
    assert len(points0) > 2000
    grey0, grey1 = (read_image(scene.images / name).mean(axis=2) for name in scene.names[:2])
    here, there = grey0[points0[:, 1], points0[:, 0]], grey1[points1[:, 1], points1[:, 0]]
    assert np.corrcoef(here, there)[0, 1] > 0.8
    shifted = grey1[np.roll(points1[:, 1], 500), np.roll(points1[:, 0], 500)]
    assert np.corrcoef(here, shifted)[0, 1] < 0.5


def test_the_demo_gets_no_published_rows() -> None:
    images = EthMirrorConfig().images_per_scene
    assert not [row for name in ETH_SCENES for row in published_rows(name, images)]


class Source(dict[str, Features]):
    """Features of a scene, and the matches of all its pairs."""

    def read(self, name: str) -> Features:
        return self[name]

    def items(self):  # type: ignore[override]
        for name0, name1 in combinations(self, 2):
            descriptors = (torch.from_numpy(self[name].descriptors) for name in (name0, name1))
            index, scores = match_descriptors(*descriptors, PROTOCOL.matcher)
            yield name0, name1, Matches(index=index.numpy(), scores=scores.numpy())


@dataclass(frozen=True)
class Reconstructed:
    """The default world's first scene, reconstructed from SIFT in `work`."""

    scene: EthScene
    world: MirrorScene
    work: Path
    result: ReconstructionResult


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> Reconstructed:
    root, config = tmp_path_factory.mktemp("default"), MirrorConfig(eth=EthMirrorConfig(scenes=1))
    world = draw_eth_scene(config, "Fountain")
    write_eth_scene(root, "Fountain", world, seed=config.seed, supersampling=1)
    scene = read_scene(root, "Fountain")
    extractor = SiftExtractor(SiftConfig(max_keypoints=1500), is_root=True)
    source = Source({name: extractor.extract(read_image(scene.images / name)) for name in scene.names})
    result = evaluate_scene(
        scene, source, source, root / "work", PROTOCOL, label="rootsift", features_digest="d"
    )
    return Reconstructed(scene, world, root / "work", result)


def test_sift_reconstructs_the_default_scene(reconstructed: Reconstructed) -> None:
    result = reconstructed.result
    assert result.mean("registered_images") == 10
    assert result.mean("points") > 300
    assert result.mean("mean_reprojection_error_px") < 0.4
    assert result.mean("centre_error_max") < 0.02
    assert result.mean("pairwise_rotation_max_deg") < 0.4


def test_dense_points_are_fused_from_depth_maps(
    reconstructed: Reconstructed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact depth takes the place of patch-match stereo, the one step that needs a GPU; the rest is COLMAP's."""
    calls = []

    def exact_depth(workspace: Path, options: object) -> None:
        calls.append(workspace)
        model = read_model(workspace / "sparse")
        truth = read_truth(reconstructed.scene)
        assert truth is not None
        images = {image.name: image for image in model.images.values()}
        centres = np.stack([centres_of(truth[name]) for name in images])
        scale = pycolmap.estimate_sim3d(
            centres, np.stack([image.projection_center() for image in images.values()])
        ).scale
        for name, image in images.items():
            K = image.camera.calibration_matrix()
            K[:2, 2] -= 0.5
            size = (image.camera.width, image.camera.height)
            camera = Camera(K=K, T_world_to_cam=truth[name], size=size)
            depth = scale * render_depth(reconstructed.world.world, camera)
            normals = np.zeros((3, *depth.shape), "<f4")
            normals[2] = -1
            for kind, values in (("depth_maps", depth[None]), ("normal_maps", normals)):
                path = workspace / "stereo" / kind / f"{name}.photometric.bin"
                header = f"{size[0]}&{size[1]}&{len(values)}&".encode()
                path.write_bytes(header + values.astype("<f4").tobytes())

    monkeypatch.setattr(pycolmap, "patch_match_stereo", exact_depth)
    monkeypatch.setattr(pycolmap, "has_cuda", True)
    protocol = replace(PROTOCOL, dense=True)
    work = reconstructed.work
    for _ in range(2):
        result = statistics_step(
            reconstructed.scene,
            work / "verified.db",
            [work / "model-0"],
            protocol,
            label="x",
            features_digest="d",
        )
        dense = result.runs[0].statistics.dense_points
        assert result.dense_note == "" and dense is not None and dense > 300
        header = (work / "model-0.dense" / "fused.ply").read_bytes().split(b"end_header")[0].decode()
        assert f"element vertex {dense}\n" in header
    assert len(calls) == 1  # what is finished is not made again


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"scenes": 3}, "scenes"),
        ({"images_per_scene": 0}, "images_per_scene"),
        ({"image_size": (9, 9)}, "image_size"),
    ],
)
def test_settings_are_checked(settings: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"mirror\.eth\.{key}: expected"):
        EthMirrorConfig(**settings)
