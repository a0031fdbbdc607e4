"""Small worlds for tests and examples: two pictures with exact geometry, a folder of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from matchlib.datasets.types import Camera
from matchlib.mirror.config import CocoMirrorConfig
from matchlib.mirror.photos_writer import SPLIT_POOLS, write_photographs
from matchlib.mirror.render import World, render_depth, render_image
from matchlib.mirror.scene import build_scene
from matchlib.randomness import generator_for


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorld:
    """Two views of one scene.

    image0, image1:   (H, W, 3) uint8 RGB, under different light
    depth0, depth1:   (H, W) float32 exact z-depth at pixel centres, 0 = sky
    camera0, camera1: K in pixels of these images, world-to-camera poses, no distortion
    world:            what both look at; `mirror.render.cast_depth` gives its depth at any position
    """

    image0: npt.NDArray[np.uint8]
    image1: npt.NDArray[np.uint8]
    depth0: npt.NDArray[np.float32]
    depth1: npt.NDArray[np.float32]
    camera0: Camera
    camera1: Camera
    world: World

    @property
    def T_0to1(self) -> npt.NDArray[np.float64]:
        """(4, 4) float64, camera-0 to camera-1 coordinates."""
        return np.asarray(self.camera1.T_world_to_cam @ np.linalg.inv(self.camera0.T_world_to_cam))


def tiny_world(seed: int = 0, *, size: tuple[int, int] = (160, 120)) -> TinyWorld:
    """Two neighbouring views of a random scene, `size` = (width, height); a function of its arguments."""
    scene = build_scene(
        seed=seed,
        dataset="tiny",
        index=0,
        pool="training",
        images=5,
        image_size=size,
        texture_px=256,
        lighting_conditions=2,
    )
    views = (2, 3)
    cameras = [scene.cameras[view] for view in views]
    images = [
        render_image(
            scene.world, scene.cameras[view], scene.lightings[view], generator_for(seed, "tiny", view)
        )
        for view in views
    ]
    depths = [render_depth(scene.world, camera) for camera in cameras]
    return TinyWorld(
        image0=images[0],
        image1=images[1],
        depth0=depths[0],
        depth1=depths[1],
        camera0=cameras[0],
        camera1=cameras[1],
        world=scene.world,
    )


def tiny_photographs(
    root: Path, *, seed: int = 0, train_images: int = 6, validation_images: int = 2, longer_side: int = 128
) -> None:
    """Write photographs in COCO's layout, unpacked, below `root`: `train2017/*.jpg` and `val2017/*.jpg`."""
    config = CocoMirrorConfig(
        train_images=train_images,
        validation_images=validation_images,
        longer_side=(longer_side, longer_side),
    )
    for split in SPLIT_POOLS:
        write_photographs(root, split, config, seed=seed)
