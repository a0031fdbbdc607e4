"""Photographs: offline, and never shared between training, validation and evaluation."""

from __future__ import annotations

import hashlib
import itertools
import socket

import numpy as np
import pytest

import matchlib.mirror.hpatches_writer as hpatches_writer
import matchlib.mirror.textures as textures
from matchlib.errors import ConfigError, DataError
from matchlib.mirror.build import draw_scene
from matchlib.mirror.hpatches_writer import sequence_names
from matchlib.mirror.textures import POOLS, load_photograph, photograph_path, pool_names, surface_texture


def test_pools_share_no_photograph_and_no_content():
    for (name0, pool0), (name1, pool1) in itertools.combinations(POOLS.items(), 2):
        assert not set(pool0) & set(pool1), f"{name0} and {name1}"
    digests = [hashlib.sha256(photograph_path(n).read_bytes()).hexdigest() for p in POOLS.values() for n in p]
    assert len(set(digests)) == len(digests)


def test_the_two_views_of_one_motorcycle_are_in_one_pool():
    homes = {pool for pool, names in POOLS.items() for name in names if name.startswith("motorcycle")}
    assert len(homes) == 1


def test_photographs_need_no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a photograph was looked for on the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_photograph.cache_clear()
    for names in POOLS.values():
        for name in names:
            photo = load_photograph(name)
            assert photo.dtype == np.uint8
            assert photo.shape[2] == 3
            assert min(photo.shape[:2]) >= 100
            assert photo.std() > 5


@pytest.fixture
def read_photographs(monkeypatch):
    """Names of all photographs that were opened."""
    opened: set[str] = set()

    def record(name):
        opened.add(name)
        return load_photograph(name)

    monkeypatch.setattr(textures, "load_photograph", record)
    monkeypatch.setattr(hpatches_writer, "load_photograph", record)
    return opened


@pytest.mark.parametrize(("index", "pool"), [(0, "training"), (1, "validation")])
@pytest.mark.parametrize("dataset", ["gl3d", "blendedmvs"])
def test_scenes_show_photographs_of_their_own_pool_only(read_photographs, tiny_config, dataset, index, pool):
    draw_scene(tiny_config, dataset, index)
    assert read_photographs
    assert read_photographs <= set(POOLS[pool])


def test_sequences_show_photographs_of_the_evaluation_pool_only(read_photographs, tiny_config, tmp_path):
    for name, photograph in sequence_names(tiny_config.hpatches).items():
        hpatches_writer.write_hpatches_sequence(tmp_path, name, photograph, tiny_config.hpatches, seed=0)
    assert read_photographs
    assert read_photographs <= set(POOLS["evaluation"])


def test_texture_is_rich_and_reproducible():
    first, again, other = (
        surface_texture(np.random.default_rng(seed), "training", 128) for seed in (4, 4, 5)
    )
    assert first.shape == (128, 128, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert first.std() > 15


def test_unknown_pool_and_missing_photograph_are_named(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="unknown photograph pool 'holiday'.*training"):
        pool_names("holiday")
    with pytest.raises(DataError, match=r"nowhere\.png: expected a photograph bundled with scikit-image"):
        photograph_path("nowhere.png")
