"""Visual localisation in the graph: the plan, and every step of one method into a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from matchlib.config import LocalisationEvaluation
from matchlib.datasets.aachen import AachenDataset, read_aachen
from matchlib.errors import ConfigError
from matchlib.jobs.data import read_index, write_image_set
from matchlib.matching.pair_lists import write_pair_list
from matchlib.typed_yaml import load_typed

Step = Literal["import", "verify", "triangulate", "register", "score"]
RAW, VERIFIED, MODEL, POSES, SCORES = "database.db", "verified.db", "model", "poses", "scores"


def read_task(settings: LocalisationEvaluation, index: Path) -> AachenDataset:
    """The prepared task: Aachen by the dataset's format, or images around a COLMAP model. Raises DataError."""
    from matchlib.evaluation.localisation_data import prepare, read_model_task

    found = read_index(index)
    root = Path(found.root)
    if found.format == "aachen":
        dataset = read_aachen(root, "v1")
    elif found.format == "aachen_v1_1":
        dataset = read_aachen(root, "v1_1")
    else:
        dataset = read_model_task(root, name=found.dataset)
    return prepare(dataset, settings.protocol)


def plan(
    settings: Mapping[str, Any],
    where: str,
    *,
    index: Path,
    out: Path,
    images: Path | None = None,
    retrieved: Path | None = None,
) -> None:
    """Decide images and pairs, the same for all methods: the folder `out`, and the image set for extraction.

    settings:  the section `where` of the configuration; index: of its dataset
    images:    None where `list_images` wrote the image set before
    retrieved: query pairs that `retrieve` wrote, for a configuration that names none
    """
    from matchlib.evaluation.localisation_data import needed_images
    from matchlib.evaluation.localisation_run import plan_job

    config = load_typed(LocalisationEvaluation, dict(settings), where)
    task, protocol = read_task(config, index), config.protocol
    if retrieved is not None:
        protocol = replace(protocol, query_pairs=(str(retrieved),))
    found = plan_job(task, out, protocol)
    if images is not None:
        write_image_set(task.images, needed_images(found), images)


def list_images(settings: Mapping[str, Any], where: str, *, index: Path, images: Path) -> None:
    """The image set of a localisation that retrieves its pairs: all reference images and all queries asked for."""
    config = load_typed(LocalisationEvaluation, dict(settings), where)
    task = read_task(config, index)
    queries = task.query_cameras(config.protocol.conditions)
    write_image_set(task.images, sorted({*task.reference, *queries}), images)


def retrieve(settings: Mapping[str, Any], where: str, *, index: Path, features: Path, out: Path) -> None:
    """Write the reference images that look most like each query, best first, as lines `query reference`.

    Raises ConfigError for a configuration without `retrieval`; DataError, see `retrieve_pairs`.
    """
    from matchlib.evaluation.localisation_config import RETRIEVED
    from matchlib.matching.retrieval import retrieve_pairs

    config = load_typed(LocalisationEvaluation, dict(settings), where)
    if config.retrieval is None:
        raise ConfigError(f"{where}.retrieval: expected settings of retrieval, got null")
    task = read_task(config, index)
    pairs = retrieve_pairs(
        features,
        reference=tuple(task.reference),
        queries=tuple(task.query_cameras(config.protocol.conditions)),
        per_image=config.retrieval.per_image or RETRIEVED,
        config=config.retrieval.vlad,
    )
    write_pair_list(out, pairs)


def run_step(
    step: Step,
    settings: Mapping[str, Any],
    where: str,
    *,
    index: Path,
    plan_folder: Path,
    features: Path,
    matches: Sequence[Path],
    folder: Path,
    label: str,
) -> None:
    """One step of one method below `folder`, in order: `database.db`, `verified.db`, `model`, `poses`, `scores`."""
    from matchlib.evaluation import localisation_run as run
    from matchlib.evaluation.localisation import score_job
    from matchlib.features.store import FeatureReader

    config = load_typed(LocalisationEvaluation, dict(settings), where)
    protocol, task, found = config.protocol, read_task(config, index), run.read_plan(plan_folder)
    raw, verified = folder / RAW, folder / VERIFIED
    if step == "import":
        run.import_job(task, found, features=features, matches=matches, out=raw, protocol=protocol)
    elif step == "verify":
        run.verify_job(task, found, database=raw, out=verified, protocol=protocol)
    elif step == "triangulate":
        run.triangulate_job(task, database=verified, out=folder / MODEL, protocol=protocol)
    elif step == "register":
        run.register_job(
            task,
            found,
            database=verified,
            model=folder / MODEL,
            features=features,
            matches=matches,
            out=folder / POSES,
            protocol=protocol,
        )
    else:
        with FeatureReader(features) as reader:
            digest = reader.digest
        score_job(task, folder / POSES, folder / SCORES, protocol, label=label, features_digest=digest)


def write_tables(results: Sequence[Path], out: Path) -> None:
    """Join `scores/result.json` of all methods into `<out>.csv` and `<out>.json`."""
    from matchlib.evaluation.localisation import localisation_table, read_localisation
    from matchlib.evaluation.table import write_table

    write_table(localisation_table([read_localisation(path) for path in results]), out)
