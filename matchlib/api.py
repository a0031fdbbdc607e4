"""Extract and match in a line or two, with any method. Everything here is also a verb of the `matchlib` command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from matchlib.config import method_settings
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.features.types import Extractor, Features, Image
from matchlib.matching.types import Matches
from matchlib.methods.spec import METHODS
from matchlib.registry import load_symbol


def choose_device(device: str) -> str:
    """`auto` is the first GPU where there is one, else the CPU; anything else is returned as it is."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_extractor(
    method: str,
    *,
    weights: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Extractor:
    """Make a method ready to extract.

    method:   a name such as "rootsift" or "aslfeat" (`matchlib methods` lists them)
    weights:  safetensors file, for methods that are trained
    settings: keys of the method's settings, e.g. {"inference": {"max_keypoints": 2000}}
    Raises ConfigError for an unknown method or key and for missing or superfluous weights, DataError for a weights
    file that does not fit.
    """
    spec = METHODS.get(method)
    config = method_settings(spec, settings or {}, f"settings of {method}")
    if spec.stages and weights is None:
        raise ConfigError(f"{method} is a trained method: give its weights file (--weights FILE.safetensors)")
    if not spec.stages and weights is not None:
        raise ConfigError(f"{method} has no weights, but {weights} was given; leave it out")
    if weights is not None and not Path(weights).is_file():
        raise DataError(f"{weights}: no such weights file")
    build = cast(Any, load_symbol(spec.extractor))
    return cast(Extractor, build(config, None if weights is None else Path(weights), choose_device(device)))


def extract(
    image: Path | str | Image,
    method: str | Extractor = "rootsift",
    *,
    weights: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Features:
    """Local features of one image, given as a file or as a (H, W, 3) uint8 RGB array.

    For many images build the extractor once (`build_extractor`) and pass it as `method`.
    Raises what `build_extractor` raises, and DataError for an unreadable image.
    """
    extractor = (
        build_extractor(method, weights=weights, settings=settings, device=device)
        if isinstance(method, str)
        else method
    )
    pixels = read_image(Path(image)) if isinstance(image, str | Path) else image
    return extractor.extract(pixels)


def match(
    first: Path | str | Image | Features,
    second: Path | str | Image | Features,
    method: str | Extractor = "rootsift",
    *,
    weights: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> tuple[Features, Features, Matches]:
    """Features of two images and their mutual nearest neighbours; features that are given are not made again.

    Raises what `extract` raises.
    """
    from matchlib.matching.mutual_nearest import match_mutual_nearest

    needs_extractor = isinstance(method, str) and not (
        isinstance(first, Features) and isinstance(second, Features)
    )
    extractor: str | Extractor = (
        build_extractor(method, weights=weights, settings=settings, device=device)
        if needs_extractor and isinstance(method, str)
        else method
    )
    features0, features1 = (
        image if isinstance(image, Features) else extract(image, extractor) for image in (first, second)
    )
    return features0, features1, match_mutual_nearest(features0, features1, device=choose_device(device))
