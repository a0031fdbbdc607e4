"""Reconstruction from images in the graph: the pairs of a scene, and every step of one method on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matchlib.config import ReconstructionEvaluation
from matchlib.datasets.eth_benchmark import EthScene, read_scene
from matchlib.jobs.data import read_index, write_image_set
from matchlib.matching.pair_lists import read_pair_list, write_pair_list
from matchlib.typed_yaml import load_typed

Step = Literal["import", "verify", "map", "statistics"]
SECTION = "evaluate_eth"
RAW, VERIFIED, RESULT = "database.db", "verified.db", "result.json"


def model_name(repeat: int) -> str:
    """Folder of one repeat's model."""
    return f"model-{repeat}"


def _read(settings: Mapping[str, Any], index: Path, scene: str) -> tuple[ReconstructionEvaluation, EthScene]:
    config = load_typed(ReconstructionEvaluation, dict(settings), SECTION)
    return config, read_scene(Path(read_index(index).root), scene)


def list_images(settings: Mapping[str, Any], *, index: Path, scene: str, images: Path) -> None:
    """The image set of a scene for extraction."""
    _, found = _read(settings, index, scene)
    write_image_set(found.images, found.names, images)


def list_pairs(
    settings: Mapping[str, Any], *, index: Path, scene: str, pairs: Path, features: Path | None = None
) -> None:
    """The pairs of a scene that all methods match; features: those that retrieval compares, where it is configured."""
    from matchlib.evaluation.reconstruction_config import RETRIEVED
    from matchlib.evaluation.reconstruction_run import choose_pairs
    from matchlib.matching.retrieval import retrieve_pairs

    config, found = _read(settings, index, scene)
    if features is None or config.retrieval is None:
        retrieve = None
    else:
        per_image = config.retrieval.per_image or RETRIEVED
        retrieve = partial(
            retrieve_pairs,
            features,
            reference=found.names,
            per_image=per_image,
            config=config.retrieval.vlad,
        )
    write_pair_list(pairs, choose_pairs(found, config.protocol, retrieve))


def run_step(
    step: Step,
    settings: Mapping[str, Any],
    *,
    index: Path,
    scene: str,
    pairs: Path,
    features: Path,
    matches: Sequence[Path],
    folder: Path,
    label: str,
    repeat: int = 0,
) -> None:
    """One step of one method below `folder`: `database.db`, `verified.db`, `model-<repeat>`, `result.json`."""
    from matchlib.evaluation import reconstruction_run as run
    from matchlib.evaluation.reconstruction import write_reconstruction
    from matchlib.features.store import FeatureReader
    from matchlib.matching.store import MatchReader

    config, found = _read(settings, index, scene)
    protocol, raw, verified = config.protocol, folder / RAW, folder / VERIFIED
    if step == "import":
        with FeatureReader(features) as reader, MatchReader(list(matches)) as matched:
            matched.require_features(reader.digest, reader.path)
            run.database_step(found, reader, matched, raw, protocol)
    elif step == "verify":
        run.verification_step(raw, verified, read_pair_list(pairs).pairs, protocol)
    elif step == "map":
        run.mapping_step(found, verified, folder / model_name(repeat), protocol, repeat=repeat)
    else:
        models = [folder / model_name(number) for number in range(protocol.repeats)]
        with FeatureReader(features) as reader:
            digest = reader.digest
        result = run.statistics_step(found, verified, models, protocol, label=label, features_digest=digest)
        write_reconstruction(result, folder / RESULT)


def write_tables(results: Sequence[Path], out: Path) -> None:
    """Join results into `<out>.csv`, `<out>.json`, and `<out>.txt` in the rows of the benchmark's own script."""
    from matchlib.evaluation.reconstruction import read_reconstruction
    from matchlib.evaluation.reconstruction_table import reconstruction_table, write_script_rows
    from matchlib.evaluation.table import write_table

    found = [read_reconstruction(path) for path in results]
    write_table(reconstruction_table(found), out)
    write_script_rows(found, out.with_suffix(".txt"))
