"""Images in tiles: what the tiles cover, and that they say what the whole image says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.methods.posfeat.config import InferenceConfig, NetworkConfig, PoSFeatConfig
from matchlib.methods.posfeat.inference import load_model
from matchlib.methods.posfeat.maps import image_maps
from matchlib.methods.posfeat.model import PoSFeat
from matchlib.methods.posfeat.tiling import spans, tiled_maps, tiled_scores, tiles_of

SMALL = NetworkConfig(encoder="resnet18", decoder_channels=(16, 16), head_channels=(8, 16))


@pytest.fixture(scope="module")
def model() -> PoSFeat:
    config = PoSFeatConfig(network=SMALL, inference=InferenceConfig(detector="network"))
    return load_model(config, None, "cpu")[0]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    noise = 0.1 * torch.randn(3, height, width, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


@settings(max_examples=300, deadline=None)
@given(
    cells=st.integers(1, 120),
    tile=st.integers(64, 400),
    overlap_share=st.floats(0, 0.49),
)
def test_spans_cover_the_side_once_and_overlap_enough(cells: int, tile: int, overlap_share: float) -> None:
    side, overlap = 16 * cells, int(overlap_share * tile)
    found = spans(side, tile, overlap)
    covered = [pixel for span in found for pixel in range(span.first, span.last)]
    assert covered == list(range(side))
    for span in found:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= side
        assert span.stop - span.start <= tile or len(found) == 1
        assert span.start % 16 == 0 and span.stop % 16 == 0 and span.first % 4 == 0 and span.last % 4 == 0
        # the part used keeps half the overlap from the edges of the tile, except at those of the image
        assert span.start == 0 or span.first - span.start >= overlap // 2
        assert span.stop == side or span.stop - span.last >= overlap // 2
    assert (len(found) == 1) == (side <= tile // 16 * 16)
    lengths = {span.stop - span.start for span in found}
    least = side + (len(found) - 1) * overlap
    assert len(lengths) == 1 and sum(span.stop - span.start for span in found) <= least + 32 * len(found)


def test_tiles_are_the_product_of_rows_and_columns() -> None:
    tiles = tiles_of((160, 96), 64, 16)
    assert len({(tile.x, tile.y) for tile in tiles}) == len(spans(160, 64, 16)) * len(spans(96, 64, 16))
    count = torch.zeros(96, 160)
    for tile in tiles:
        count[tile.used()] += 1
        inner = torch.zeros(96, 160)[tile.seen()]
        inner[tile.used_of_seen()] = 1
        assert inner.sum() == count[tile.used()].numel()
    assert (count == 1).all()
    assert len(tiles_of((160, 96), None, 16)) == 1


@pytest.mark.parametrize("tile_px", [64, 80, 100, 128])
@torch.inference_mode()
def test_the_head_in_tiles_gives_the_scores_of_the_whole_image(model: PoSFeat, tile_px: int) -> None:
    image = picture(112, 144)
    whole = image[None].float() / 255
    maps = model.maps(whole)
    assert model.head is not None
    scores = tiled_scores(model.head, maps, image, tile_px)
    torch.testing.assert_close(scores, model.scores(whole, maps), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_one_tile_is_the_whole_image(model: PoSFeat) -> None:
    image = picture(64, 80)
    maps = tiled_maps(model, image, tiles_of((80, 64), 80, 16))
    whole = model.maps(image[None].float() / 255)
    assert torch.equal(maps.fine, whole.fine) and torch.equal(maps.early, whole.early)


@torch.inference_mode()
def test_maps_in_tiles_are_in_place_and_near_the_whole(model: PoSFeat) -> None:
    image = picture(192, 256)
    whole = image_maps(model, image, InferenceConfig(), with_scores=True)
    tiled = image_maps(model, image, InferenceConfig(tile_px=128, tile_overlap_px=48), with_scores=True)
    mean = whole.fine.mean(dim=(1, 2), keepdim=True)  # what all places have in common shows nothing
    same = torch.cosine_similarity(whole.fine - mean, tiled.fine - mean, dim=0)
    moved = torch.cosine_similarity(whole.fine - mean, (tiled.fine - mean).roll(1, dims=2), dim=0)
    assert same.mean() > 0.9 and same.mean() > moved.mean() + 0.1
    assert whole.scores is not None and tiled.scores is not None
    together = np.corrcoef(whole.scores.flatten().numpy(), tiled.scores.flatten().numpy())[0, 1]
    assert together > 0.95


@torch.inference_mode()
def test_early_maps_away_from_seams_do_not_depend_on_tiles(model: PoSFeat) -> None:
    # The stem sees 11 pixels around a cell, less than half the overlap: its map is the same, cell by cell.
    image = picture(160, 192, seed=3)
    tiled = tiled_maps(model, image, tiles_of((192, 160), 96, 40))
    whole = model.maps(image[None].float() / 255)
    torch.testing.assert_close(tiled.early, whole.early, atol=1e-5, rtol=1e-4)
