"""The config loader's messages: where, what, what instead; and that numbers given as text are numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchlib.errors import ConfigError
from matchlib.typed_yaml import dump_typed, json_schema, load_typed, read_typed, read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    learning_rate: float = 0.1
    """Step size at the start."""
    steps: int = 3
    loss: Literal["contrastive", "circle"] = "circle"
    resume: bool = True

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate: expected a value above 0, got {self.learning_rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    name: str
    stages: Mapping[str, Stage] = field(default_factory=dict)
    size: tuple[int, int] = (640, 480)
    extra: tuple[Stage, ...] = ()
    start: Stage | None = None
    rule: Stage | Fixed | None = None
    limit: int | Literal["all"] = "all"
    folder: Path | None = None


def message(value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_typed(Run, value, "c.yaml")
    return str(caught.value)


def test_nested_values_become_their_types():
    run = load_typed(
        Run,
        {
            "name": "a",
            "stages": {"base": {"steps": 7}},
            "size": [3, 4],
            "extra": [{}],
            "rule": {"threshold": 2},
        },
        "c.yaml",
    )
    expected = Run(
        name="a", stages={"base": Stage(steps=7)}, size=(3, 4), extra=(Stage(),), rule=Fixed(threshold=2.0)
    )
    assert run == expected


def test_numbers_written_as_text_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\nstages: {base: {learning_rate: 1e-4, steps: '12'}}\nlimit: '5'\n")
    run = read_typed(Run, path)
    assert run.stages["base"].learning_rate == 1e-4
    assert run.stages["base"].steps == 12


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"name": "a", "stages": {"base": {"learning_rat": 1}}},
            "c.yaml: stages.base.learning_rat: unknown key; did you mean learning_rate? "
            "(known: learning_rate, steps, loss, resume)",
        ),
        (
            {"name": "a", "start": {"lr": 1}},
            "c.yaml: start.lr: unknown key; did you mean learning_rate? "
            "(known: learning_rate, steps, loss, resume)",
        ),
        (
            {"name": "a", "extra": [{}, {"steps": "many"}]},
            "c.yaml: extra.1.steps: expected an integer, got 'many'",
        ),
        ({"name": "a", "extra": [{"steps": 1.5}]}, "c.yaml: extra.0.steps: expected an integer, got 1.5"),
        ({"name": "a", "start": {"steps": True}}, "c.yaml: start.steps: expected an integer, got true"),
        (
            {"name": "a", "start": {"resume": "perhaps"}},
            "c.yaml: start.resume: expected true or false, got 'perhaps'",
        ),
        (
            {"name": "a", "start": {"loss": "circel"}},
            "c.yaml: start.loss: expected one of contrastive, circle, got 'circel'; did you mean circle?",
        ),
        (
            {"name": "a", "start": {"learning_rate": -2}},
            "c.yaml: start.learning_rate: expected a value above 0, got -2.0",
        ),
        (
            {"name": "a", "start": {"learning_rate": float("nan")}},
            "c.yaml: start.learning_rate: expected a finite number, got nan",
        ),
        ({"name": "a", "size": [1]}, "c.yaml: size: expected 2 values, got [1]"),
        ({"name": "a", "size": [1, 2, 3]}, "c.yaml: size: expected 2 values, got 3"),
        ({"name": "a", "size": 7}, "c.yaml: size: expected a list, got 7"),
        ({}, "c.yaml: name: missing; this key has no default"),
        ({"name": 5}, "c.yaml: name: expected a string, got 5"),
        ({"name": "a", "stages": [1]}, "c.yaml: stages: expected a mapping, got [1]"),
        (
            {"name": "a", "start": 3},
            "c.yaml: start: expected a mapping with keys learning_rate, steps, loss, resume, got 3",
        ),
        ({"name": "a", "rule": {"threshold": "x"}}, "c.yaml: rule.threshold: expected a number, got 'x'"),
        ({"name": "a", "limit": "x"}, "c.yaml: limit: expected an integer or all, got 'x'"),
        (
            None,
            "c.yaml: expected a mapping with keys name, stages, size, extra, start, rule, limit, folder, "
            "got null",
        ),
    ],
)
def test_each_fault_is_one_line_that_says_where_and_what(value, expected):
    assert message(value) == expected


def test_several_faults_are_reported_at_once():
    lines = message({"colour": "a", "size": [1, "b"], "start": {"steps": "x"}}).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["colour", "name", "size.1", "start.steps"]


def test_a_misspelt_key_is_one_fault_not_two():
    assert message({"nmae": "a"}).startswith("c.yaml: nmae: unknown key; did you mean name?")
    assert "\n" not in message({"nmae": "a"})


def test_errors_of_a_file_name_the_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\n\nstages:\n  base:\n    steps: 2\n    lr: 3\nextra:\n  - {}\n  - steps: x\n")
    with pytest.raises(ConfigError) as caught:
        read_typed(Run, path)
    first, second = sorted(str(caught.value).splitlines())
    assert first.startswith(f"{path}:6: stages.base.lr: unknown key")
    assert second == f"{path}:9: extra.1.steps: expected an integer, got 'x'"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: a\nsize: [1, 2]\nname: b\n", 3, "key 'name' occurs twice"),
        ("name: [a\n", 2, "not readable as YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", 1, "not readable as YAML"),
    ],
)
def test_broken_yaml_is_one_line_with_its_place(tmp_path, text, line, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        read_typed(Run, tmp_path / "absent.yaml")


stages = st.builds(
    Stage,
    learning_rate=st.floats(1e-9, 1e9),
    steps=st.integers(-(2**40), 2**40),
    loss=st.sampled_from(["contrastive", "circle"]),
    resume=st.booleans(),
)
runs = st.builds(
    Run,
    name=st.text(),
    stages=st.dictionaries(st.text(), stages, max_size=3),
    size=st.tuples(st.integers(), st.integers()),
    extra=st.lists(stages, max_size=3).map(tuple),
    start=st.none() | stages,
    rule=st.none() | stages | st.builds(Fixed, threshold=st.floats(-1e9, 1e9)),
    limit=st.just("all") | st.integers(),
    folder=st.none() | st.just(Path("a/b")),
)


@given(runs)
def test_every_config_survives_json(run):
    assert load_typed(Run, json.loads(json.dumps(dump_typed(run))), "c.yaml") == run


scalars = st.none() | st.booleans() | st.floats() | st.text() | st.integers()
keys = st.text() | st.sampled_from(["name", "stages", "size", "extra", "start", "rule", "steps", "loss"])


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=12))
def test_any_value_loads_or_gives_a_config_error(value):
    try:
        load_typed(Run, value, "c.yaml")
    except ConfigError as error:
        assert all(line.startswith("c.yaml: ") for line in str(error).splitlines())


def test_the_schema_forbids_unknown_keys_and_carries_the_docstrings():
    schema = json_schema(Run)
    stage = schema["$defs"]["Stage"]
    assert schema["additionalProperties"] is False
    assert stage["additionalProperties"] is False
    assert stage["properties"]["learning_rate"]["description"] == "Step size at the start."
