"""Visual localisation in the graph: the plan, and every step of one method into a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matchlib.config import LocalisationEvaluation
from matchlib.datasets.aachen import AachenDataset, read_aachen
from matchlib.jobs.data import read_index, write_image_set
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


def plan(settings: Mapping[str, Any], where: str, *, index: Path, out: Path, images: Path) -> None:
    """Decide images and pairs, the same for all methods: the folder `out`, and the image set for extraction.

    settings: the section `where` of the configuration; index: of its dataset
    """
    from matchlib.evaluation.localisation_data import needed_images
    from matchlib.evaluation.localisation_run import plan_job

    config = load_typed(LocalisationEvaluation, dict(settings), where)
    task = read_task(config, index)
    found = plan_job(task, out, config.protocol)
    write_image_set(task.images, needed_images(found), images)


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
