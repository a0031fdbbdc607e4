"""Settings of the demo world."""

from __future__ import annotations

from dataclasses import dataclass, field

from matchlib.errors import ConfigError

_MIN_SIDE_PX = 32
ETH_SCENES = ("Fountain", "Herzjesu")
"""Names of the demo's scenes to reconstruct; upstream's two small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GL3DMirrorConfig:
    """Scenes written in the layout of GL3D."""

    train_scenes: int = 4
    """Scenes listed in `imageset_train.txt`; their textures come from the training photographs."""

    validation_scenes: int = 1
    """Scenes listed in `imageset_test.txt`; their textures come from the validation photographs."""

    images_per_scene: int = 10
    """Cameras per scene."""

    original_size: tuple[int, int] = (400, 300)
    """(width, height) in pixels of the original images: what `cameras.txt` and the keypoints refer to."""

    stored_size: tuple[int, int] = (256, 256)
    """(width, height) of the stored undistorted images (1000 x 1000 in the real GL3D)."""

    depth_size: tuple[int, int] = (128, 128)
    """(width, height) of the depth maps (250 x 250 in the real GL3D)."""

    keypoints_per_image: int = 1500
    """At most this many SIFT keypoints per image, strongest first."""

    match_threshold_px: float = 2.0
    """A SIFT match enters `corr.bin` if exact depth warps each side to within this distance of the other, in
    pixels of the original image."""

    chunk_bytes: int = 1 << 20
    """The tar of each kind of file is cut into chunks of this size (512 MiB upstream)."""

    def __post_init__(self) -> None:
        _check_counts("mirror.gl3d", train_scenes=self.train_scenes, images_per_scene=self.images_per_scene)
        _check_not_negative("mirror.gl3d", validation_scenes=self.validation_scenes)
        _check_counts(
            "mirror.gl3d", keypoints_per_image=self.keypoints_per_image, chunk_bytes=self.chunk_bytes
        )
        for key in ("original_size", "stored_size", "depth_size"):
            _check_size(f"mirror.gl3d.{key}", getattr(self, key))
        if self.match_threshold_px <= 0:
            raise ConfigError(
                f"mirror.gl3d.match_threshold_px: expected a value above 0, got {self.match_threshold_px}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedMVSMirrorConfig:
    """Scenes written in the layout of BlendedMVS."""

    train_scenes: int = 2
    """Scenes listed in the training list."""

    validation_scenes: int = 1
    """Scenes listed in the validation list."""

    images_per_scene: int = 8
    """Cameras per scene."""

    image_size: tuple[int, int] = (256, 192)
    """(width, height) of images and depth maps (768 x 576 in the real set)."""

    neighbours: int = 5
    """Source views per image in `pair.txt` (10 upstream), best first."""

    part_bytes: int = 1 << 21
    """Size of one part of the split zip."""

    def __post_init__(self) -> None:
        _check_counts("mirror.blendedmvs", train_scenes=self.train_scenes, neighbours=self.neighbours)
        _check_counts("mirror.blendedmvs", images_per_scene=self.images_per_scene)
        _check_not_negative("mirror.blendedmvs", validation_scenes=self.validation_scenes)
        _check_size("mirror.blendedmvs.image_size", self.image_size)
        if self.part_bytes < 1 << 16:
            raise ConfigError(
                f"mirror.blendedmvs.part_bytes: expected at least 65536 (Info-ZIP's smallest part), "
                f"got {self.part_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HPatchesMirrorConfig:
    """Photo-warp sequences written in the layout of the HPatches sequences."""

    illumination_sequences: int = 4
    """Number of `i_*` sequences: one view, changing light."""

    viewpoint_sequences: int = 4
    """Number of `v_*` sequences: one photograph seen through growing homographies."""

    image_size: tuple[int, int] = (440, 330)
    """(width, height) of all images."""

    def __post_init__(self) -> None:
        _check_not_negative("mirror.hpatches", illumination_sequences=self.illumination_sequences)
        _check_not_negative("mirror.hpatches", viewpoint_sequences=self.viewpoint_sequences)
        if self.illumination_sequences + self.viewpoint_sequences < 1:
            raise ConfigError("mirror.hpatches: expected at least one sequence, got none")
        _check_size("mirror.hpatches.image_size", self.image_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoMirrorConfig:
    """Photographs written in the layout of MSCOCO 2017."""

    train_images: int = 96
    """Pictures in `train2017.zip` (118,287 upstream), made of the training photographs."""

    validation_images: int = 16
    """Pictures in `val2017.zip` (5,000 upstream), made of the validation photographs."""

    longer_side: tuple[int, int] = (320, 480)
    """Smallest and largest width or height, whichever is longer, in pixels (640 upstream)."""

    jpeg_quality: int = 90
    """JPEG quality, 1 to 100."""

    def __post_init__(self) -> None:
        _check_counts("mirror.coco", train_images=self.train_images, validation_images=self.validation_images)
        low, high = self.longer_side
        if not 2 * _MIN_SIDE_PX <= low <= high:
            raise ConfigError(
                f"mirror.coco.longer_side: expected two ascending lengths of at least {2 * _MIN_SIDE_PX} px, "
                f"got {self.longer_side}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"mirror.coco.jpeg_quality: expected 1 to 100, got {self.jpeg_quality}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsMirrorConfig:
    """Scenes written in the layout of CAPS' MegaDepth subset."""

    train_scenes: int = 3
    """Scenes in the folder `train`; their textures come from the training photographs."""

    validation_scenes: int = 1
    """Scenes in the folder `val`; their textures come from the validation photographs."""

    images_per_scene: int = 10
    """Cameras per scene, dealt out to its sub-models in turn."""

    sub_models: int = 2
    """Folders `dense<k>` per scene; each has a world of its own scale, position and orientation."""

    image_size: tuple[int, int] = (320, 240)
    """(width, height) of all images (640 x 480 in the real set)."""

    min_covisible_share: float = 0.15
    """Two images are a pair if each shows at least this share of the other; rotation is 80 degrees at most."""

    def __post_init__(self) -> None:
        _check_counts("mirror.caps_megadepth", train_scenes=self.train_scenes, sub_models=self.sub_models)
        _check_not_negative("mirror.caps_megadepth", validation_scenes=self.validation_scenes)
        _check_size("mirror.caps_megadepth.image_size", self.image_size)
        if self.images_per_scene < 2 * self.sub_models:
            raise ConfigError(
                f"mirror.caps_megadepth.images_per_scene: expected at least 2 for each of {self.sub_models} "
                f"sub_models, got {self.images_per_scene}"
            )
        if not 0 < self.min_covisible_share <= 1:
            raise ConfigError(
                f"mirror.caps_megadepth.min_covisible_share: expected a share above 0 to 1, "
                f"got {self.min_covisible_share}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AachenMirrorConfig:
    """A place by day and by night in the layout of Aachen Day-Night, v1 and v1.1."""

    reference_images: int = 12
    """Images `db/*.jpg` of known pose (4,328 in the real set)."""

    sequence_images: int = 2
    """Further images of known pose that v1.1 adds (2,369 in the real set)."""

    day_queries: int = 4
    """Queries by day (824 in the real set)."""

    night_queries: int = 4
    """Queries by night (98 in the real set)."""

    additional_night_queries: int = 2
    """Queries by night that v1.1 adds (93 in the real set)."""

    image_size: tuple[int, int] = (320, 240)
    """(width, height) of all images (1600 x 1063 and other sizes in the real set)."""

    min_covisible_share: float = 0.25
    """Two reference images are matched if each shows at least this share of the other."""

    pairs_per_query: int = 6
    """Reference images that each query is matched with (20 in the real set)."""

    points_per_image: int = 60
    """Surface points per reference image, for the models that come with the images."""

    def __post_init__(self) -> None:
        _check_counts(
            "mirror.aachen",
            reference_images=self.reference_images,
            night_queries=self.night_queries,
            pairs_per_query=self.pairs_per_query,
            points_per_image=self.points_per_image,
        )
        _check_not_negative(
            "mirror.aachen",
            sequence_images=self.sequence_images,
            day_queries=self.day_queries,
            additional_night_queries=self.additional_night_queries,
        )
        _check_size("mirror.aachen.image_size", self.image_size)
        if not 0 < self.min_covisible_share <= 1:
            raise ConfigError(
                f"mirror.aachen.min_covisible_share: expected a share above 0 to 1, got {self.min_covisible_share}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EthMirrorConfig:
    """Scenes in the layout of the ETH local-feature benchmark."""

    scenes: int = 2
    """The first so many of Fountain and Herzjesu."""

    images_per_scene: int = 10
    """Cameras per scene (11 and 8 in the real set); COLMAP's mapper drops models of fewer than 10."""

    image_size: tuple[int, int] = (320, 240)
    """(width, height) of all images (3072 x 2048 in the real set)."""

    def __post_init__(self) -> None:
        _check_counts("mirror.eth", images_per_scene=self.images_per_scene)
        _check_size("mirror.eth.image_size", self.image_size)
        if not 0 <= self.scenes <= len(ETH_SCENES):
            raise ConfigError(f"mirror.eth.scenes: expected 0 to {len(ETH_SCENES)}, got {self.scenes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorConfig:
    """The whole demo world. Equal settings give equal bytes."""

    seed: int = 0
    """Seed of every random draw."""

    lighting_conditions: int = 4
    """Different kinds of light that the images of one scene are taken in."""

    texture_px: int = 768
    """Side of one square surface texture, in texels."""

    supersampling: int = 2
    """Rays per pixel along each axis; their colours are averaged."""

    gl3d: GL3DMirrorConfig = field(default_factory=GL3DMirrorConfig)
    """GL3D-like scenes."""

    blendedmvs: BlendedMVSMirrorConfig = field(default_factory=BlendedMVSMirrorConfig)
    """BlendedMVS-like scenes."""

    hpatches: HPatchesMirrorConfig = field(default_factory=HPatchesMirrorConfig)
    """HPatches-like sequences."""

    coco: CocoMirrorConfig = field(default_factory=CocoMirrorConfig)
    """COCO-like photographs."""

    caps_megadepth: CapsMirrorConfig = field(default_factory=CapsMirrorConfig)
    """Scenes like CAPS' MegaDepth subset."""

    aachen: AachenMirrorConfig = field(default_factory=AachenMirrorConfig)
    """Like Aachen Day-Night."""

    eth: EthMirrorConfig = field(default_factory=EthMirrorConfig)
    """Like the ETH local-feature benchmark."""

    def __post_init__(self) -> None:
        _check_counts(
            "mirror", lighting_conditions=self.lighting_conditions, supersampling=self.supersampling
        )
        if not 64 <= self.texture_px <= 4096:
            raise ConfigError(f"mirror.texture_px: expected 64 to 4096, got {self.texture_px}")


def _check_counts(where: str, **values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise ConfigError(f"{where}.{key}: expected at least 1, got {value}")


def _check_not_negative(where: str, **values: int) -> None:
    for key, value in values.items():
        if value < 0:
            raise ConfigError(f"{where}.{key}: expected 0 or more, got {value}")


def _check_size(where: str, size: tuple[int, int]) -> None:
    if min(size) < _MIN_SIDE_PX:
        raise ConfigError(f"{where}: expected (width, height) of at least {_MIN_SIDE_PX} px each, got {size}")
