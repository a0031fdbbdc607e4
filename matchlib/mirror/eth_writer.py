"""Places to reconstruct, in the layout of the ETH local-feature benchmark, with their true poses beside them."""

from __future__ import annotations

from pathlib import Path

from matchlib.datasets.aachen import write_pose_list
from matchlib.datasets.eth_benchmark import IMAGES, TRUE_POSES
from matchlib.datasets.images import write_image
from matchlib.mirror.config import ETH_SCENES, EthMirrorConfig, MirrorConfig
from matchlib.mirror.render import render_image
from matchlib.mirror.scene import MirrorScene, build_scene
from matchlib.randomness import generator_for


def eth_scene_names(config: EthMirrorConfig) -> tuple[str, ...]:
    """Names of the scenes that are drawn; upstream's."""
    return ETH_SCENES[: config.scenes]


def eth_archive(name: str) -> str:
    """Upstream's archive of a scene, without its ending."""
    return f"Strecha-{name}"


def draw_eth_scene(config: MirrorConfig, name: str) -> MirrorScene:
    """The world, cameras and light of one scene; its textures come from photographs that no training scene shows."""
    settings = config.eth
    return build_scene(
        seed=config.seed,
        dataset="eth",
        index=ETH_SCENES.index(name),
        pool="evaluation",
        images=settings.images_per_scene,
        image_size=settings.image_size,
        texture_px=config.texture_px,
        lighting_conditions=config.lighting_conditions,
    )


def write_eth_scene(root: Path, name: str, scene: MirrorScene, *, seed: int, supersampling: int) -> None:
    """Write `<name>/images/0000.png`, ... and `<name>/true_poses.txt` below `root`.

    There is no `database.db`: intrinsics are guessed and refined, as with photographs of one's own.
    """
    poses = {}
    for index, (camera, lighting) in enumerate(zip(scene.cameras, scene.lightings, strict=True)):
        noise = generator_for(seed, "eth", name, index, "noise")
        image = f"{index:04d}.png"
        picture = render_image(scene.world, camera, lighting, noise, supersampling=supersampling)
        write_image(root / name / IMAGES / image, picture)
        poses[image] = camera.T_world_to_cam
    write_pose_list(root / name / TRUE_POSES, poses)
