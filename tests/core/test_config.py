"""Promises of the configuration: faults stop early, with one line that names the key and the remedy."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matchlib.config_reference import reference_text, schema_text
from matchlib.downloads.config import DatasetSource
from matchlib.errors import ConfigError
from matchlib.methods.spec import METHODS
from matchlib.subsets import select_scenes
from matchlib.typed_yaml import dump_typed, merged, read_yaml, without
from matchlib.workflow import Workflow
from matchlib.workflow_checks import load_workflow

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config" / "config.yaml"


def load(change: Callable[[dict[str, Any]], None] = lambda config: None) -> Workflow:
    config = copy.deepcopy(read_yaml(CONFIG))
    change(config)
    return load_workflow(config, where="config.yaml", folder=CONFIG.parent)


def refused(change: Callable[[dict[str, Any]], None]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(change)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("config.yaml: ")
    return message


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    workflow = load_workflow(read_yaml(path), where=str(path), folder=path.parent)
    assert workflow.hpatches_labels() or workflow.localisations() or workflow.eth_labels()


def test_rows_of_the_table_follow_from_runs_and_baselines() -> None:
    workflow = load()
    labels = load(lambda c: c["evaluate_hpatches"].update(methods=None)).hpatches_labels()
    assert labels[:6] == ("sift", "rootsift", "daisy", "aslfeat-initial", "aslfeat-base", "aslfeat-dcn")
    assert labels[-4:] == tuple(f"superpoint-{s}" for s in ("initial", "shapes", "magicpoint", "superpoint"))
    assert workflow.candidates()["aslfeat-initial"].initial


def test_the_first_stage_is_that_of_the_method_however_stages_are_written() -> None:
    def turn(config: dict[str, Any]) -> None:
        stages = config["runs"]["superpoint"]["stages"]
        config["runs"]["superpoint"]["stages"] = dict(reversed(stages.items()))

    assert list(load(turn).candidates().items()) == list(load().candidates().items())
    assert load(turn).candidates()["superpoint-initial"].stage == "shapes"


def test_variants_are_rows_of_the_pck_table_only_and_oracles_too() -> None:
    workflow = load(lambda c: c["evaluate_pck"].pop("methods"))
    variants = {"msnet-descriptor-coarse", "msnet-descriptor-v1", "msnet-descriptor-oracle"}
    assert variants <= set(workflow.pck_labels())
    features = load(lambda c: c["evaluate_hpatches"].update(methods=None)).hpatches_labels()
    assert not variants & set(features)
    assert "msnet-v2-descriptor" in workflow.pck_labels()
    assert "msnet-v2-descriptor" not in features  # its blend needs the true homography
    assert workflow.candidates()["msnet-descriptor-v1"].settings["members"] == "set2"


def test_a_variant_changes_nested_keys_and_keeps_the_others() -> None:
    def change(config: dict[str, Any]) -> None:
        config["runs"]["msnet"]["settings"] = {"detector": {"kind": "harris", "max_keypoints": 7}}
        config["evaluate_pck"] = None
        config["runs"]["msnet"]["variants"] = {"few": {"detector": {"max_keypoints": 3}}}

    candidates = load(change).candidates()
    assert candidates["msnet-descriptor-few"].settings["detector"] == {"kind": "harris", "max_keypoints": 3}
    assert candidates["msnet-descriptor"].settings["detector"]["max_keypoints"] == 7


def trained_with(run: str, stage: str, **settings: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["runs"][run]["settings"] = merged(config["runs"][run].get("settings", {}), settings)

    return load(change).run_of_stage(run, stage)


def test_settings_of_extraction_and_of_later_stages_retrain_nothing() -> None:
    extraction = {"inference": {"max_keypoints": 77}}
    assert trained_with("aslfeat", "dcn", **extraction) == trained_with("aslfeat", "dcn")
    assert trained_with("posfeat", "kp", **extraction) == trained_with("posfeat", "kp")
    later = {"keypoint_loss": {"temperature": 7.0}}
    assert trained_with("posfeat", "desc", **later) == trained_with("posfeat", "desc")
    assert trained_with("posfeat", "kp", **later) != trained_with("posfeat", "kp")
    # The filters of detection count in validation.
    assert trained_with("aslfeat", "dcn", inference={"nms_size": 5}) != trained_with("aslfeat", "dcn")


@pytest.mark.parametrize("method", METHODS.names())
def test_ignored_settings_exist(method: str) -> None:
    spec = METHODS.get(method)
    defaults = dump_typed(spec.config())
    for stage in spec.stages.values():
        for key in stage.ignores:
            below = defaults
            for part in key.split("."):
                below = below[part]


def test_keys_are_taken_out_at_any_depth() -> None:
    value = {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": 3}, "g": 4}
    assert without(value, ["a.c.d", "e.f", "g", "missing.key"]) == {"a": {"b": 1}}
    assert value["a"] == {"b": 1, "c": {"d": 2}}


def test_unknown_keys_are_named_with_a_suggestion() -> None:
    message = refused(lambda c: c["runs"]["aslfeat"]["stages"]["base"].update(lr=1))
    assert "runs.aslfeat.stages.base.lr: unknown key" in message and "learning_rate" in message
    message = refused(lambda c: c["runs"]["aslfeat"]["settings"].update(los={}))
    assert "runs.aslfeat.settings" in message and "did you mean loss" in message


def test_wrong_types_say_what_was_expected() -> None:
    message = refused(lambda c: c["runs"]["aslfeat"]["stages"]["base"].update(steps="many"))
    assert "runs.aslfeat.stages.base.steps: expected an integer, got 'many'" in message


def test_a_stage_is_refused_on_a_dataset_that_cannot_supervise_it() -> None:
    message = refused(lambda c: c["runs"]["aslfeat"].update(train_on=["hpatches"]))
    assert "needs 'depth_pose' pairs, but dataset 'hpatches' gives homography" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["runs"]["aslfeat"].update(method="aslfet"), "did you mean 'aslfeat'"),
        (lambda c: c["runs"]["aslfeat"].update(train_on=["gl4d"]), "unknown dataset 'gl4d'"),
        (lambda c: c["runs"]["aslfeat"]["stages"].pop("base"), "starts from stage 'base'"),
        (lambda c: c["runs"]["aslfeat"]["stages"].update(dnc={"steps": 1}), "unknown stage of aslfeat"),
        (lambda c: c["evaluate_hpatches"].update(dataset="gl3d"), "expected a dataset of format hpatches"),
        (lambda c: c["evaluate_hpatches"].update(methods=["surf"]), "unknown label 'surf'"),
        (lambda c: c["baselines"].update(mine={"method": "aslfeat"}), "needs weights; name their file"),
        (lambda c: c["baselines"].update(mine={"method": "disk"}), "needs weights; name their file"),
        (
            lambda c: c["baselines"].update(mine={"method": "sift", "weights": "w"}),
            "mine.weights: sift has no",
        ),
        (lambda c: c["runs"]["msnet"].update(train_on=["hpatches"]), "format photos or coco"),
        (lambda c: c["runs"]["msnet"].update(train_on=[]), "runs.msnet.train_on: expected at least one"),
        (
            lambda c: c["runs"]["msnet"]["variants"].update(x={"member": 1}),
            "runs.msnet.variants.x: member: unknown key",
        ),
        (lambda c: c["runs"]["superpoint"]["stages"].pop("shapes"), "starts from stage 'shapes'"),
        (lambda c: c["runs"]["superpoint"].update(label_shards=0), "label_shards: expected at least 1"),
        (lambda c: c["evaluate_pck"].update(methods=["surf"]), "evaluate_pck.methods: unknown label"),
        (lambda c: c["evaluate_pck"].update(dataset="coco"), "expected a dataset of format hpatches"),
        (
            lambda c: c["evaluate_pck"]["ablation"].update(methods=["x"]),
            "evaluate_pck.ablation.methods: unknown",
        ),
        (lambda c: c["evaluate_pck"]["ablation"].update(protocol="x"), "ablation.protocol: unknown protocol"),
        (lambda c: c["evaluate_hpatches"].update(methods=["msnet-v2-descriptor"]), "uses the true warp"),
        (lambda c: c.update(mirror=None), "`mirror` is null"),
        (lambda c: c["datasets"]["gl3d"].update(root="no/such/folder"), "datasets.gl3d.root: no such folder"),
        (lambda c: c["datasets"]["gl3d"].update(source="datasets/absent.yaml"), "absent.yaml"),
        (lambda c: c["baselines"].update({"aslfeat-base": {"method": "sift"}}), "same label"),
        (
            lambda c: c["evaluate_eth"].update(retrieval={"features": "surf"}),
            "evaluate_eth.retrieval.features: unknown label 'surf'",
        ),
        (
            lambda c: c["evaluate_eth"].update(retrieval={"features": "msnet-v2-descriptor"}),
            "evaluate_eth.retrieval.features: 'msnet-v2-descriptor' uses the true warp",
        ),
        (
            lambda c: c["evaluate_eth"].update(protocol={"pairs": "retrieval"}),
            "evaluate_eth.retrieval: expected {features: LABEL}",
        ),
        (
            lambda c: c["evaluate_eth"].update(
                protocol={"pairs": "list"}, retrieval={"features": "rootsift"}
            ),
            "evaluate_eth.retrieval: expected null with protocol.pairs list",
        ),
        (
            lambda c: c["evaluate_aachen_v1_1"].update(protocol={"variant": "retrieval"}),
            "evaluate_aachen_v1_1.retrieval: expected {features: LABEL}",
        ),
        (
            lambda c: c["evaluate_aachen_v1_1"].update(retrieval={"features": "rootsift"}),
            "evaluate_aachen_v1_1.retrieval: expected null unless protocol.variant is retrieval",
        ),
        (
            lambda c: c["evaluate_aachen_v1_1"].update(
                protocol={"variant": "retrieval"}, retrieval={"features": "surf"}
            ),
            "evaluate_aachen_v1_1.retrieval.features: unknown label 'surf'",
        ),
    ],
)
def test_impossible_combinations_are_refused(change: Callable[[dict[str, Any]], None], expected: str) -> None:
    assert expected in refused(change)


def test_numbers_that_arrive_as_words_are_numbers() -> None:
    workflow = load(lambda c: c["runs"]["aslfeat"]["stages"]["base"].update(learning_rate="1e-4", steps="7"))
    stage = workflow.config.runs["aslfeat"].stages["base"]
    assert (stage.learning_rate, stage.steps) == (1e-4, 7)


def _source(**fields: Any) -> DatasetSource:
    return DatasetSource(
        name="n", format="gl3d", licence="l", homepage="https://h.example", status="available", **fields
    )


def test_excluded_scenes_validate_only_if_a_list_names_them_and_validation_scenes_never_train() -> None:
    scenes = [f"s{i}" for i in range(20)]
    split = select_scenes(_source(exclude_scenes=("s3", "s19")), scenes, None, 2)
    assert not {"s3", "s19"} & {*split["train"], *split["validation"]}
    assert len(split["validation"]) == 2 and not set(split["train"]) & set(split["validation"])
    named = select_scenes(_source(validation_scenes=("s1", "s2", "s4")), scenes, None, 2)
    assert named["validation"] == ("s1", "s2") and not {"s1", "s2", "s4"} & set(named["train"])
    listed = select_scenes(_source(), scenes, ["s5", "other"], 5)
    assert set(listed["validation"]) == {"s5", "other"} and "s5" not in listed["train"]
    tested = select_scenes(_source(exclude_scenes=("s5",)), scenes, ["s5", "other"], 5)
    assert tested["validation"] == ("other", "s5") and "s5" not in tested["train"]


def test_the_gl3d_test_scenes_are_kept_out_of_blendedmvs_training() -> None:
    from matchlib.downloads.config import read_source

    for path in sorted((ROOT / "config" / "datasets").glob("blendedmvs*.yaml")):
        excluded = read_source(path).exclude_scenes
        assert len(excluded) == 40, path
        assert not set(excluded) & set(select_scenes(read_source(path), excluded, None, 5)["train"])


def test_schema_and_reference_are_those_of_the_dataclasses() -> None:
    hint = "run: matchlib schema > config/schemas/config.schema.json; matchlib config-reference > config/README.md"
    assert (ROOT / "config/schemas/config.schema.json").read_text() == schema_text(), hint
    assert (ROOT / "config/README.md").read_text() == reference_text(), hint
    assert json.loads(schema_text())["additionalProperties"] is False


def test_what_the_snakefile_imports_does_not_import_torch_or_opencv() -> None:
    code = (
        "import sys, matchlib, matchlib.workflow_checks, matchlib.cli, matchlib.ops.build, matchlib.completion\n"
        f"from pathlib import Path; from matchlib.typed_yaml import read_yaml\n"
        f"path = Path({str(CONFIG)!r})\n"
        "matchlib.workflow_checks.load_workflow(read_yaml(path), where='c', folder=path.parent)\n"
        "print([m for m in ('torch', 'cv2', 'pandas', 'matplotlib', 'snakemake') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
