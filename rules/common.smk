"""Configuration, paths and input functions. Nothing here imports torch: every job pays for this file."""

import json
import re
import shutil
from pathlib import Path

from matchlib.errors import ConfigError, DataError
from matchlib.ops.build import source_files, toolchain_fingerprint
from matchlib.revisions import REVISIONS
from matchlib.typed_yaml import dump_typed, merged, parse_overrides
from matchlib.workflow import files_of_settings, match_set_folder
from matchlib.workflow_checks import load_workflow

CONFIG_FILES = [Path(path) for path in workflow.configfiles]
REGENERATE = bool(config.pop("regenerate", False))  # --config regenerate=true
OVERRIDES = str(
    config.pop("set", "")
).split()  # --config set="runs.msnet.seed=1 mirror.seed=2"


def checked_workflow():
    """The configuration, or its faults, one line each, before anything is planned."""
    where = " + ".join(map(str, CONFIG_FILES))
    try:
        return load_workflow(
            merged(config, parse_overrides(OVERRIDES)),
            where=where,
            folder=CONFIG_FILES[0].parent,
        )
    except (ConfigError, DataError) as error:
        raise WorkflowError(str(error)) from None


W = checked_workflow()
CFG = W.config
HPATCHES = CFG.evaluate_hpatches
HOMOGRAPHY_PROTOCOLS = (
    [protocol.name for protocol in HPATCHES.homography_protocols] if HPATCHES else []
)
PCK = CFG.evaluate_pck
PCK_PROTOCOLS = {protocol.name: protocol for protocol in PCK.protocols} if PCK else {}
POSE = CFG.evaluate_pose
LOCALISATIONS = W.localisations()
ETH = CFG.evaluate_eth
LABELS = W.candidates()
STATIC_SCENES = {name: W.static_scenes(name) for name in CFG.datasets}
DOWNLOADS = W.downloads()
TRAINING_DATASETS = sorted(
    {name for run in CFG.runs.values() for name in run.train_on if W.has_scenes(name)}
)


def alternatives(names):
    """A wildcard constraint for these names; one that matches nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def json_of(value):
    """A settings dataclass as one line of JSON, all defaults written out; so a rule reruns when a value changes."""
    return "null" if value is None else json.dumps(dump_typed(value), sort_keys=True)


# Made once: a thousand scenes share them.
DATASET_SETTINGS = {name: json_of(dataset) for name, dataset in CFG.datasets.items()}
MATCH_SET_SETTINGS = {
    name: json_of(dataset.match_sets) for name, dataset in CFG.datasets.items()
}
FORMATS = {name: W.format_of(name) for name in CFG.datasets}


# ---------------------------------------------------------------- machine
HAS_GPU = shutil.which("nvidia-smi") is not None


def gpus(wildcards):
    """One GPU; none on a machine without, where such jobs need not wait for each other."""
    return 1 if HAS_GPU or workflow.non_local_exec else 0


def gpus_of_label(wildcards):
    """A GPU for methods that have a network of ours."""
    return gpus(wildcards) if LABELS[wildcards.label].run else 0


def few_threads(wildcards):
    """A quarter of this machine, at least one core: there are many such jobs, and most take longer to start than to run."""
    cores = workflow.resource_settings.cores
    return 4 if workflow.non_local_exec or not cores else max(1, cores // 4)


# ---------------------------------------------------------------- data
def mirror_needed_by(wildcards):
    """The demo world, for archives that lie in it."""
    urls = W.sources[DOWNLOADS[wildcards.source]].archive(wildcards.archive).urls
    return (
        ["results/mirror/.complete"]
        if any(url.startswith("mirror:") for url in urls)
        else []
    )


def archives_of(source):
    """Markers of all archives that a description lists."""
    return [
        f"data/archives/{source}/{archive.name}/.complete"
        for archive in W.sources[DOWNLOADS[source]].archives
    ]


def unpacked(dataset):
    """Marker of the unpacked dataset; none for a root that is used in place."""
    return (
        []
        if CFG.datasets[dataset].root is not None
        else f"data/{W.sources[dataset].name}/.complete"
    )


def dataset_index(dataset):
    """File that says where a dataset lies and which scenes it has."""
    return f"results/datasets/{dataset}.json"


def scenes_of(dataset):
    """Training and validation scenes; asks the checkpoint where they are found only after unpacking."""
    scenes = STATIC_SCENES[dataset]
    if scenes is None:
        index = checkpoints.find_scenes.get(dataset=dataset).output.index
        scenes = json.loads(Path(index).read_text())
    return [*scenes["train"], *scenes["validation"]]


def match_sets_of(datasets):
    """Match-set markers of all scenes of some datasets."""
    return [
        f"results/match_sets/{dataset}/{match_set_folder(scene)}/.complete"
        for dataset in datasets
        for scene in scenes_of(dataset)
    ]


# ---------------------------------------------------------------- training and evaluation
def run_settings(run, stage):
    """What a stage of a run depends on: a changed setting of stage 2, or of extraction, leaves stage 1 alone."""
    return json_of(W.run_of_stage(run, stage))


def initial_weights_of(wildcards):
    """Weights that a stage starts from: those of the stage before it, or none."""
    before = W.stage_spec(wildcards.run, wildcards.stage).init_from
    return (
        []
        if before is None
        else f"results/train/{wildcards.run}/{before}/weights.safetensors"
    )


def datasets_of(run, stage):
    """Datasets that a stage learns from; none for a stage that draws its own pictures."""
    return () if W.stage_spec(run, stage).needs is None else CFG.runs[run].train_on


def label_folders_of(run, stage):
    """Folder of labels of each dataset of a stage, or None where it learns without labels."""
    labelled_by = W.stage_spec(run, stage).labels_from
    return [
        None if labelled_by is None else W.label_folder(run, labelled_by, dataset)
        for dataset in datasets_of(run, stage)
    ]


def labels_of(wildcards):
    """Markers of all shards of labels that a stage learns from."""
    shards = CFG.runs[wildcards.run].label_shards
    return [
        f"{folder}/{shard}/.complete"
        for folder in label_folders_of(wildcards.run, wildcards.stage)
        if folder is not None
        for shard in range(shards)
    ]


def weights_of(wildcards):
    """Weights behind a row of the results table: of a stage, before its first step, the user's own, or none."""
    row = LABELS[wildcards.label]
    if row.run is None:
        return [] if row.weights is None else row.weights
    name = "initial" if row.initial else "weights"
    return f"results/train/{row.run}/{row.stage}/{name}.safetensors"


def files_of_label(wildcards):
    """Further files that the settings of a row name, e.g. a second weights file."""
    return files_of_settings(LABELS[wildcards.label])


def files_of_stage(wildcards):
    """Files that the settings of a run name, e.g. ImageNet weights to start from."""
    return files_of_settings(LABELS[f"{wildcards.run}-{wildcards.stage}"])


def hpatches_files(pattern):
    """One file per method that HPatches evaluates, in table order; `pattern` holds {dataset} and {label}."""
    if HPATCHES is None:
        return []
    return [
        pattern.format(dataset=HPATCHES.dataset, label=label)
        for label in W.hpatches_labels()
    ]


def homography_files():
    """One file per homography protocol and method."""
    patterns = [
        f"results/homography/{{dataset}}/{{label}}/{name}.json"
        for name in HOMOGRAPHY_PROTOCOLS
    ]
    return [path for pattern in patterns for path in hpatches_files(pattern)]


def pose_files(pattern):
    """One file per method whose relative poses are evaluated; `pattern` holds {dataset} and {label}."""
    if POSE is None:
        return []
    return [
        pattern.format(dataset=POSE.dataset, label=label) for label in W.pose_labels()
    ]


def evaluation_of(image_set):
    """The localisation, or the reconstruction, that an image set belongs to."""
    return LOCALISATIONS.get(image_set.removeprefix("localisation-"), ETH)


def pairs_of_image_set(wildcards):
    """The list of pairs that an evaluation matches."""
    kind, _, name = wildcards.image_set.partition("-")
    if kind == "localisation":
        return f"results/{name}/plan/pairs.txt"
    return f"results/eth/{name}/pairs.txt"


def retrieving(is_wanted):
    """Localisations whose query pairs are retrieved from features; or, if not wanted, all others."""
    return [
        name
        for name, evaluation in LOCALISATIONS.items()
        if (evaluation.retrieval is not None) == is_wanted
    ]


def scenes_retrieving(is_wanted):
    """Scenes of the reconstruction if its pairs may be retrieved from features; or, if not wanted, if they never are."""
    return ETH.scenes if ETH and (ETH.retrieval is not None) == is_wanted else ()


def features_to_retrieve_by(image_set):
    """The features that images are compared by where an evaluation retrieves its pairs; of one label for all methods."""
    return (
        f"results/features/{image_set}/{evaluation_of(image_set).retrieval.features}.h5"
    )


def match_shards_of(image_set, label):
    """Markers of all shards of matches of an evaluation."""
    shards = evaluation_of(image_set).match_shards
    return [
        f"results/matches/{image_set}/{label}/{shards}-shards/{shard}/.complete"
        for shard in range(shards)
    ]


def localisation_files(challenge):
    """One result per method of a localisation, in table order."""
    return [
        f"results/{challenge}/{label}/scores/result.json"
        for label in W.localisation_labels(challenge)
    ]


def localisation_targets(challenge):
    """The table of a localisation; nothing where the configuration asks for none."""
    return [f"results/{challenge}/table.csv"] if challenge in LOCALISATIONS else []


def eth_files():
    """One result per scene and method, scene by scene in table order."""
    return [
        f"results/eth/{scene}/{label}/result.json"
        for scene in (ETH.scenes if ETH else ())
        for label in W.eth_labels()
    ]


def pck_files(pattern):
    """One file per PCK protocol and method, in table order; `pattern` holds {dataset}, {protocol}, {label}."""
    return [
        pattern.format(dataset=PCK.dataset, protocol=protocol, label=label)
        for protocol in PCK_PROTOCOLS
        for label in W.pck_labels()
    ]


def pck_ablation_files():
    """One file per method of the table of exact against approximate search."""
    if PCK is None or PCK.ablation is None:
        return []
    return [
        f"results/pck/{PCK.dataset}/{PCK.ablation.protocol}/ablation/{label}.json"
        for label in PCK.ablation.methods
    ]


def about_this_run():
    """What the report says of data, licences and runs; `group/name` stands under its group."""
    about = {
        "summary": f"Configuration: {', '.join(str(path) for path in CONFIG_FILES)}"
    }
    for name, source in W.sources.items():
        about[f"datasets/{name}"] = f"{source.name}, format {source.format}"
        about[f"licences/{name}"] = source.licence
    for name, run in CFG.runs.items():
        stages = ", ".join(
            f"{stage} ({settings.steps} steps)"
            for stage, settings in run.stages.items()
        )
        data = ", ".join(run.train_on) or "pictures of its own"
        about[f"runs/{name}"] = f"{run.method} on {data}: {stages}"
    return about


wildcard_constraints:
    dataset=alternatives(CFG.datasets),
    source=alternatives(DOWNLOADS),
    archive="[^/]+",
    match_set=match_set_folder("[^/]+"),
    run=alternatives(CFG.runs),
    stage=alternatives({stage for run in CFG.runs.values() for stage in run.stages}),
    label=alternatives(LABELS),
    image_set=r"[^/]+",
    challenge=alternatives(LOCALISATIONS),
    scene=alternatives(ETH.scenes if ETH else ()),
    repeat=r"\d+",
    protocol=alternatives(PCK_PROTOCOLS),
    shards=r"\d+",
    shard=r"\d+",
