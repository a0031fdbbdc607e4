"""The whole configuration file as frozen dataclasses. Imports no torch.

Every part owns its dataclass (match sets, warps, training stages, methods, protocols); here they are put together.
What only the whole can tell is checked in `matchlib.workflow`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matchlib.datasets.pose_pairs import PairFormat
from matchlib.downloads.config import FetchPolicy
from matchlib.errors import ConfigError
from matchlib.evaluation.config import HOMOGRAPHY_PROTOCOLS, HomographyProtocol, HPatchesProtocol
from matchlib.evaluation.localisation_config import LocalisationProtocol
from matchlib.evaluation.pck_config import PCK_PROTOCOLS, PCKProtocol
from matchlib.evaluation.pose_config import POSE_PROTOCOLS, PoseProtocol
from matchlib.evaluation.reconstruction_config import ReconstructionProtocol
from matchlib.match_sets.config import MatchSetConfig
from matchlib.matching.config import RetrievalConfig
from matchlib.methods.spec import MethodSpec
from matchlib.mirror.config import MirrorConfig
from matchlib.photo_pairs.config import WarpConfig
from matchlib.training.config import StageConfig
from matchlib.typed_yaml import dump_typed, load_typed


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A dataset and how its pairs are chosen."""

    source: str
    """Description of the dataset (archives, licence, format): a YAML file, relative to the configuration's folder."""
    format: str | None = None
    """Another on-disk format than the description's, e.g. gl3d_blended_or_plain for GL3D; null: the description's."""
    root: str | None = None
    """A copy that you already have; used in place, never written to, nothing is downloaded. null: download."""
    train_split: str = "all"
    """Scenes to train on: a split of the format, e.g. gl3d: comb/train (file `list/comb/imageset_train.txt`)."""
    validation_split: str | None = None
    """Scenes for validation figures, e.g. comb/test; null: the description's, else some of `train_split`, held out."""
    exclude: tuple[str, ...] | None = None
    """Lists of scenes that are never used: names of the description's `exclusions`; null: all, []: none."""
    validation_scenes: int = 5
    """At most this many validation scenes are used."""
    validation_images: int = 500
    """Formats of plain photographs: at most this many validation photographs are used."""
    match_sets: MatchSetConfig = field(default_factory=MatchSetConfig)
    """Formats with scenes: which pairs of images are kept, and what is stored of them."""
    warps: WarpConfig = field(default_factory=WarpConfig)
    """Formats of plain photographs: how two views are made of each."""

    def __post_init__(self) -> None:
        for key in ("validation_scenes", "validation_images"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: expected at least 1, got {getattr(self, key)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run: a method, the data it sees, and its stages."""

    method: str
    """A method with training stages, e.g. aslfeat."""
    train_on: tuple[str, ...]
    """Datasets (keys of `datasets`) whose training scenes are used together."""
    seed: int = 0
    """Every random draw of the run follows from it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method; `matchlib settings METHOD` lists them."""
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    """Training settings by stage of the method; a stage that is not named is not trained."""
    label_shards: int = 4
    """Stages that learn from labels: the photographs of a dataset are labelled in this many jobs."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further rows `<run>-<stage>-<variant>` of the PCK table: the last stage's weights under other settings."""

    def __post_init__(self) -> None:
        if self.label_shards < 1:
            raise ConfigError(f"label_shards: expected at least 1, got {self.label_shards}")
        if "initial" in self.stages:
            raise ConfigError("stages.initial: this name is taken by the weights before training")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineConfig:
    """A method that is only evaluated: without training, or with weights that you bring."""

    method: str
    """Any method, e.g. rootsift or aslfeat."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method; `matchlib settings METHOD` lists them."""
    weights: str | None = None
    """Weights file: safetensors of a trained method, or the published file of a third-party one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HPatchesConfig:
    """`evaluate_hpatches`: matching accuracy and homographies on HPatches sequences."""

    dataset: str
    """Dataset of format hpatches."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate (baselines and <run>-<stage>); null: all there are."""
    protocol: HPatchesProtocol = field(default_factory=HPatchesProtocol)
    """Everything that changes a number."""
    homography_protocols: tuple[HomographyProtocol, ...] = HOMOGRAPHY_PROTOCOLS
    """Protocols of the separate homography table; a list replaces the four published ones, [] makes none."""
    published: str | None = None
    """Folder of published result files (`<method>.npy`) to draw in the same plot."""

    def __post_init__(self) -> None:
        names = [protocol.name for protocol in self.homography_protocols]
        if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
            raise ConfigError(f"homography_protocols: expected distinct plain names, got {', '.join(names)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKAblationConfig:
    """Descriptor against matcher: the same descriptors searched exactly and approximately."""

    methods: tuple[str, ...]
    """Labels to compare. Sets of descriptors have no approximate search: their row has the exact figure only."""
    protocol: str = "as-coded"
    """Name of one of `protocols`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKConfig:
    """`evaluate_pck`: descriptors at given places of HPatches sequences, whatever a detector would find."""

    dataset: str
    """Dataset of format hpatches."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate; null: all whose method has descriptors at every place."""
    protocols: tuple[PCKProtocol, ...] = PCK_PROTOCOLS
    """Protocols; a list replaces the two published ones."""
    ablation: PCKAblationConfig | None = None
    """A separate table of exact against approximate search; null: none."""

    def __post_init__(self) -> None:
        names = [protocol.name for protocol in self.protocols]
        if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", n) for n in names):
            raise ConfigError(f"protocols: expected distinct plain names, got {', '.join(names) or 'none'}")
        if self.ablation is not None and self.ablation.protocol not in names:
            raise ConfigError(
                f"ablation.protocol: unknown protocol '{self.ablation.protocol}' (known: {', '.join(names)})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseConfig:
    """`evaluate_pose`: relative poses of image pairs from matches."""

    dataset: str
    """Dataset with poses, whose validation scenes give the pairs; or, with `list`, one of format photos: the images."""
    list: str | None = None
    """File or folder of pairs, below the dataset's root or absolute; null: pairs of the validation scenes."""
    list_format: PairFormat = "matchlib"
    """Format of `list`: matchlib (JSON or CSV), superglue, megadepth, scannet (LoFTR's indices), glue_factory."""
    images: str = "."
    """With `list`: folder below the dataset's root that its image names are relative to."""
    pixel_offset: float | None = None
    """With `list`: where its K have the centre of the first pixel, 0 or 0.5; null: as its format is published."""
    epipolar_threshold: float | None = None
    """Largest symmetric squared epipolar distance of a correct match; null: 1e-4 or 5e-4, as the list is published."""
    max_pairs: int = 500
    """Without `list`: at most this many pairs, drawn evenly from all."""
    extract_long_side: int | None = None
    """Long side in pixels that images are resized to, smaller or larger, before features are extracted; null: original
    size. Published figures need the `long_side` of their protocol here. Keypoints come back in original pixels."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate (baselines and <run>-<stage>); null: all that need no truth."""
    protocols: tuple[PoseProtocol, ...] = POSE_PROTOCOLS
    """Protocols; a list replaces the two: PoseLib at 1 px and OpenCV at 0.5 px."""

    def __post_init__(self) -> None:
        if self.max_pairs < 1:
            raise ConfigError(f"max_pairs: expected at least 1, got {self.max_pairs}")
        if self.extract_long_side is not None and self.extract_long_side < 16:
            raise ConfigError(
                f"extract_long_side: expected at least 16 or null, got {self.extract_long_side}"
            )
        names = [protocol.name for protocol in self.protocols]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"protocols: expected distinct names, got {', '.join(names) or 'none'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationEvaluation:
    """`evaluate_aachen`, `evaluate_aachen_v1_1`: poses of query images against images of known pose."""

    dataset: str
    """Dataset of format aachen or aachen_v1_1; or of format photos: a folder with a COLMAP model (`sparse/`), `images/`
    and `queries_with_intrinsics.txt`."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate (baselines and <run>-<stage>); null: all that need no truth."""
    protocol: LocalisationProtocol = field(default_factory=LocalisationProtocol)
    """Everything that changes a number."""
    retrieval: RetrievalConfig | None = None
    """Query pairs of the variant `retrieval` where there are no `query_pairs`; null: none are made. No match for lists
    from learned global descriptors (NetVLAD, as hloc ships them): figures do not compare with published ones."""
    match_shards: int = 1
    """Pairs are matched in this many jobs per method."""

    def __post_init__(self) -> None:
        wants = self.protocol.variant == "retrieval" and not self.protocol.query_pairs
        if wants and self.retrieval is None:
            raise ConfigError(
                "retrieval: expected {features: LABEL} for protocol.variant retrieval without protocol.query_pairs, "
                "got null"
            )
        if not wants and self.retrieval is not None:
            raise ConfigError(
                "retrieval: expected null unless protocol.variant is retrieval and protocol.query_pairs are none; got "
                f"features of {self.retrieval.features}"
            )
        if self.match_shards < 1:
            raise ConfigError(f"match_shards: expected at least 1, got {self.match_shards}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionEvaluation:
    """`evaluate_eth`: reconstruction of scenes from images alone."""

    scenes: Mapping[str, str]
    """Scene -> its dataset, of format eth_benchmark, e.g. {Fountain: eth_strecha_fountain}."""
    methods: tuple[str, ...] | None = None
    """Labels to evaluate (baselines and <run>-<stage>); null: all that need no truth."""
    protocol: ReconstructionProtocol = field(default_factory=ReconstructionProtocol)
    """Everything that changes a number. Published: `mutual`; `official` (ratio 0.8, pixel_offset 0), `posfeat` (ratio
    0.75 in both directions)."""
    retrieval: RetrievalConfig | None = None
    """Pairs for `pairs: retrieval`, and for `pairs: auto` of large scenes without a list; null: none are made. The
    features are extracted before the pairs of any scene are chosen, small ones included. No match for learned global
    descriptors."""
    match_shards: int = 1
    """Pairs of a scene are matched in this many jobs per method."""

    def __post_init__(self) -> None:
        pairs = self.protocol.pairs
        if pairs == "retrieval" and self.retrieval is None:
            raise ConfigError("retrieval: expected {features: LABEL} for protocol.pairs retrieval, got null")
        if pairs in ("exhaustive", "list") and self.retrieval is not None:
            raise ConfigError(
                f"retrieval: expected null with protocol.pairs {pairs}, got features of {self.retrieval.features}"
            )
        if not self.scenes:
            raise ConfigError("scenes: expected at least one scene and its dataset, got none")
        if self.match_shards < 1:
            raise ConfigError(f"match_shards: expected at least 1, got {self.match_shards}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowConfig:
    """The configuration file."""

    mirror: MirrorConfig | None = None
    """The demo world that `mirror:` addresses of dataset descriptions point into; null: there is none."""
    downloads: FetchPolicy = field(default_factory=FetchPolicy)
    """Patience and limits of downloads."""
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)
    """Datasets by a name of your choice. Entries with the same `source` share its download."""
    runs: Mapping[str, RunConfig] = field(default_factory=dict)
    """Training runs by a name of your choice."""
    baselines: Mapping[str, BaselineConfig] = field(default_factory=dict)
    """Methods to compare with, by a name of your choice."""
    evaluate_hpatches: HPatchesConfig | None = None
    """HPatches evaluation; null: none."""
    evaluate_pck: PCKConfig | None = None
    """PCK evaluation; null: none."""
    evaluate_pose: PoseConfig | None = None
    """Relative-pose evaluation; null: none."""
    evaluate_aachen: LocalisationEvaluation | None = None
    """Visual localisation on Aachen Day-Night v1, or any other set; null: none."""
    evaluate_aachen_v1_1: LocalisationEvaluation | None = None
    """Visual localisation on Aachen Day-Night v1.1; null: none."""
    evaluate_eth: ReconstructionEvaluation | None = None
    """Reconstruction; null: none."""


def method_settings(spec: MethodSpec, settings: Mapping[str, Any], where: str) -> Any:
    """The typed settings of a method. Raises ConfigError naming `where` and the key."""
    return load_typed(spec.config, dict(settings), where)


def settings_help(cls: type) -> dict[str, Any]:
    """Every key of a settings dataclass with its default, as plain values."""
    return dict(dump_typed(cls()))


def weights_files(settings: Mapping[str, Any], where: str = "") -> dict[str, str]:
    """Files that settings of a method name beside its weights, by key: keys that end in `_weights`, at any depth."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= weights_files(value, f"{where}{key}.")
        elif key.endswith("_weights") and isinstance(value, str):
            found[f"{where}{key}"] = value
    return found
