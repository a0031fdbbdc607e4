"""One small mirror for all tests of this folder, built once and unpacked with the system's plain readers."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from matchlib.mirror.build import build_mirror
from matchlib.mirror.config import (
    AachenMirrorConfig,
    BlendedMVSMirrorConfig,
    CapsMirrorConfig,
    CocoMirrorConfig,
    EthMirrorConfig,
    GL3DMirrorConfig,
    HPatchesMirrorConfig,
    MirrorConfig,
)

TINY = MirrorConfig(
    seed=3,
    lighting_conditions=2,
    texture_px=256,
    gl3d=GL3DMirrorConfig(
        train_scenes=1,
        validation_scenes=1,
        images_per_scene=3,
        original_size=(240, 180),
        stored_size=(160, 160),
        depth_size=(80, 80),
        chunk_bytes=100_000,
    ),
    blendedmvs=BlendedMVSMirrorConfig(
        train_scenes=1, validation_scenes=1, images_per_scene=3, image_size=(128, 96), part_bytes=1 << 16
    ),
    hpatches=HPatchesMirrorConfig(illumination_sequences=1, viewpoint_sequences=1, image_size=(160, 120)),
    coco=CocoMirrorConfig(train_images=10, validation_images=2, longer_side=(96, 128)),
    caps_megadepth=CapsMirrorConfig(
        train_scenes=1, validation_scenes=1, images_per_scene=5, image_size=(128, 96)
    ),
    aachen=AachenMirrorConfig(
        reference_images=5,
        sequence_images=1,
        day_queries=1,
        night_queries=2,
        additional_night_queries=1,
        image_size=(96, 72),
        pairs_per_query=3,
    ),
    eth=EthMirrorConfig(scenes=1, images_per_scene=3, image_size=(128, 96)),
)


@dataclass(frozen=True)
class BuiltMirror:
    """archives: the mirror's own folder; gl3d, hpatches: roots of the unpacked datasets."""

    archives: Path
    gl3d: Path
    hpatches: Path


@pytest.fixture(scope="session")
def tiny_config() -> MirrorConfig:
    return TINY


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> BuiltMirror:
    folder = tmp_path_factory.mktemp("mirror")
    archives, gl3d, hpatches = folder / "archives", folder / "gl3d", folder / "hpatches"
    build_mirror(TINY, archives)
    for stem in sorted({path.name.split(".tar.")[0] for path in archives.glob("gl3d_*.tar.*")}):
        joined = b"".join(path.read_bytes() for path in sorted(archives.glob(f"{stem}.tar.*")))
        with tarfile.open(fileobj=io.BytesIO(joined)) as tar:
            tar.extractall(gl3d, filter="data")
    with tarfile.open(archives / "hpatches-sequences-release.tar.gz") as tar:
        tar.extractall(hpatches, filter="data")
    return BuiltMirror(archives, gl3d, hpatches / "hpatches-sequences-release")
