"""Promises of the small shared modules: shapes, registries, addressed randomness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchlib.errors import ConfigError, ShapeError, check_shape
from matchlib.randomness import address_seed, generator_for, torch_generator_for
from matchlib.registry import load_symbol


def test_check_shape_returns_sizes_and_names_what_differs() -> None:
    assert check_shape("points", np.zeros((5, 2)), "N 2") == {"N": 5}
    with pytest.raises(ShapeError, match=r"descriptors: expected shape \(3, D\), got \(2, 8\)"):
        check_shape("descriptors", np.zeros((2, 8)), "3 D")
    with pytest.raises(ShapeError):
        check_shape("matrix", np.zeros((2, 3)), "N N")


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 1000))
def test_an_address_always_gives_the_same_draw(seed: int, epoch: int, index: int) -> None:
    first, second = (generator_for(seed, epoch, index, "crop").random(3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert address_seed(seed, epoch, index) != address_seed(seed, epoch, index, "crop")
    assert 0 <= address_seed(seed, epoch) < 2**63


def test_addresses_do_not_run_into_each_other() -> None:
    addresses = [(0, 12), (0, 1, 2), (0, "1", 2), (0, "1/2"), (1, 2), (12,)]
    assert len({address_seed(*address) for address in addresses}) == len(addresses)
    assert torch_generator_for(1, "a").initial_seed() == address_seed(1, "a")


def test_every_registered_entry_points_at_code_that_exists() -> None:
    from matchlib.datasets.types import FORMATS
    from matchlib.methods.spec import METHODS

    for name in METHODS.names():
        spec = METHODS.get(name)
        spec.config()
        assert callable(load_symbol(spec.extractor))
        assert spec.trainable is None or callable(load_symbol(spec.trainable))
        for stage in spec.stages.values():
            assert stage.init_from is None or stage.init_from in spec.stages
    for name in FORMATS.names():
        dataset_format = FORMATS.get(name)
        assert callable(load_symbol(dataset_format.list_scenes))
        assert dataset_format.read_scene is None or callable(load_symbol(dataset_format.read_scene))
    with pytest.raises(ConfigError, match="did you mean 'aslfeat'"):
        METHODS.get("aslfaet")
