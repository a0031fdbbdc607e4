"""Extract and match in a line or two, with any method. Everything here is also a verb of the `matchlib` command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from matchlib.config import method_settings
from matchlib.datasets.images import read_image
from matchlib.errors import ConfigError, DataError
from matchlib.features.dense import DenseDescriber
from matchlib.features.types import Extractor, Features, Image
from matchlib.matching.types import Matches
from matchlib.methods.spec import METHODS, MethodSpec
from matchlib.registry import load_symbol


def choose_device(device: str) -> str:
    """`auto` is the first GPU where there is one, else the CPU; anything else is returned as it is.

    Raises ConfigError for what is no device, and for a GPU that this machine lacks.
    """
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:<number>, got '{device}'") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: '{device}' asks for a GPU, of which this machine offers {torch.cuda.device_count()}; use "
            f"auto or cpu"
        )
    return device


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
    spec, config, path = _checked(method, weights, settings)
    build = cast(Any, load_symbol(spec.extractor))
    return cast(Extractor, build(config, path, choose_device(device)))


def build_describer(
    method: str,
    *,
    weights: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> DenseDescriber:
    """Make a method ready to describe any place of an image; arguments and errors as of `build_extractor`.

    Raises ConfigError also for a method without descriptors at every place.
    """
    spec, config, path = _checked(method, weights, settings)
    if spec.dense is None:
        able = ", ".join(name for name in METHODS.names() if METHODS.get(name).dense is not None)
        raise ConfigError(f"{method} has no descriptors at every place (methods that do: {able})")
    build = cast(Any, load_symbol(spec.dense))
    return cast(DenseDescriber, build(config, path, choose_device(device)))


def import_weights(
    method: str, path: Path | str, out: Path | str, *, settings: Mapping[str, Any] | None = None
) -> None:
    """Turn a weights file that another program wrote into one of ours (safetensors), atomically.

    settings: keys of the method's settings that decide its architecture
    Raises ConfigError for a method that imports none, DataError for a file of another architecture.
    """
    from safetensors.torch import save_file

    from matchlib.completion import atomic_path

    spec = METHODS.get(method)
    if spec.importer is None:
        able = ", ".join(name for name in METHODS.names() if METHODS.get(name).importer is not None)
        raise ConfigError(f"{method} imports no weights of other programs (methods that do: {able})")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such weights file")
    config = method_settings(spec, settings or {}, f"settings of {method}")
    state = cast(Any, load_symbol(spec.importer))(config, Path(path))
    with atomic_path(Path(out)) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)


def _check_ready_made(
    method: str | Extractor, weights: Path | str | None, settings: Mapping[str, Any] | None
) -> None:
    if not isinstance(method, str) and (weights is not None or settings is not None):
        raise ConfigError(
            f"{method.name}: weights and settings belong to a method's name; this extractor has its own already"
        )


def _checked(
    method: str, weights: Path | str | None, settings: Mapping[str, Any] | None
) -> tuple[MethodSpec, Any, Path | None]:
    spec = METHODS.get(method)
    config = method_settings(spec, settings or {}, f"settings of {method}")
    if spec.weights != "none" and weights is None:
        what = "a trained method: give its weights file (--weights FILE.safetensors)"
        if spec.weights == "foreign":
            what = "a third-party method: give the weights file that its authors published (--weights FILE)"
        raise ConfigError(f"{method} is {what}")
    if spec.weights == "none" and weights is not None:
        raise ConfigError(f"{method} has no weights, but {weights} was given; leave it out")
    if weights is not None and not Path(weights).is_file():
        raise DataError(f"{weights}: no such weights file")
    return spec, config, None if weights is None else Path(weights)


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
    _check_ready_made(method, weights, settings)
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

    _check_ready_made(method, weights, settings)
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
