"""Retrieval: VLAD against a direct loop, places told apart on made-up and on real images, broken input."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matchlib.errors import ConfigError, DataError
from matchlib.features.store import FeatureReader, FeatureWriter, StoreHeader
from matchlib.features.types import Features
from matchlib.matching import retrieval
from matchlib.matching.config import RetrievalConfig, VladConfig
from matchlib.matching.retrieval import learn_codebook, most_similar, retrieve_pairs, vlad

PLACES, VIEWS = 4, 6
SETTINGS = VladConfig(clusters=8, sample=600)
BLANK = "0/blank.jpg"


def described(descriptors: np.ndarray) -> Features:
    count = len(descriptors)
    return Features(
        keypoints=np.zeros((count, 2), np.float32),
        scores=np.linspace(1, 0, count, dtype=np.float32),
        descriptors=descriptors.astype(np.float32),
        image_size=(64, 48),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path: Path, images: Mapping[str, Features], unreadable: Mapping[str, str] | None = None) -> Path:
    with FeatureWriter(path, StoreHeader(method="toy", fingerprint="f")) as writer:
        for name, features in images.items():
            writer.add(name, features)
        writer.finish(unreadable)
    return path


def places() -> dict[str, Features]:
    """Views of some places: 40 points of the place, seen with noise, and 20 of nowhere; one image is blank."""
    images = {}
    for place in range(PLACES):
        points = np.random.default_rng(place).normal(size=(40, 16))
        for view in range(VIEWS):
            draw = np.random.default_rng(100 * place + view + 50)
            rows = np.concatenate([points + 0.3 * draw.normal(size=points.shape), draw.normal(size=(20, 16))])
            images[f"{place}/{view}.jpg"] = described(unit(draw.permutation(rows)))
    return images | {BLANK: described(np.zeros((0, 16)))}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("places") / "f.h5", places())


# ---------------------------------------------------------------- parts
def test_vlad_is_the_sum_of_residuals_scaled_per_word() -> None:
    draw = np.random.default_rng(0)
    descriptors, codebook = draw.normal(size=(50, 6)), draw.normal(size=(5, 6))
    codebook[4] = 100  # a word that nothing is near
    expected = np.zeros((5, 6))
    for row in descriptors:
        word = min(range(5), key=lambda k: float(((row - codebook[k]) ** 2).sum()))
        expected[word] += row - codebook[word]
    for k in range(5):
        if expected[k].any():
            expected[k] /= np.linalg.norm(expected[k])
    expected /= np.linalg.norm(expected)
    found = vlad(descriptors.astype(np.float32), codebook.astype(np.float32))
    assert found.dtype == np.float32 and (expected[4] == 0).all()
    np.testing.assert_allclose(found, expected.reshape(-1), atol=1e-5)


def test_an_image_without_descriptors_has_a_vector_of_zeros() -> None:
    assert not vlad(np.zeros((0, 6), np.float32), np.ones((3, 6), np.float32)).any()


def test_words_are_the_means_of_what_is_nearest_to_them(features: Path) -> None:
    """The fixed point of k-means, over all descriptors because the sample holds them all."""
    settings = replace(SETTINGS, sample=100_000, iterations=500)
    names = sorted(places())
    with FeatureReader(features) as reader:
        codebook = learn_codebook(reader, names, settings)
        again = learn_codebook(reader, names, settings)
        other = learn_codebook(reader, names, replace(settings, seed=1))
    assert codebook.shape == (8, 16) and (codebook == again).all() and (codebook != other).any()
    rows = np.concatenate([image.descriptors for image in places().values()])
    nearest = ((rows[:, None] - codebook) ** 2).sum(axis=2).argmin(axis=1)
    means = np.stack([rows[nearest == word].mean(axis=0) for word in range(8)])
    np.testing.assert_allclose(codebook, means, atol=1e-3)


def test_similar_rows_are_ranked_ties_by_row_without_the_image_itself() -> None:
    reference = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0.6, 0.8]], np.float32)
    queries = np.array([[1, 0], [0.6, 0.8], [0, 0], [-1, 0]], np.float32)
    found = most_similar(queries, reference, 3, own=np.array([2, -1, 3, -1]))
    assert [rows.tolist() for rows in found] == [[0, 4, 1], [4, 1, 0], [], [1, 4, 0]]


# ---------------------------------------------------------------- pairs
def test_images_of_a_place_find_each_other(
    features: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(places())
    with caplog.at_level(logging.WARNING):
        pairs = retrieve_pairs(features, reference=names, per_image=VIEWS - 1, config=SETTINGS)
    assert all(first.split("/")[0] == second.split("/")[0] for first, second in pairs)
    assert len(pairs) == PLACES * VIEWS * (VIEWS - 1) // 2  # each once, none of an image with itself
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert "1 of 25 images have no keypoints" in caplog.text and BLANK in caplog.text
    monkeypatch.setattr(retrieval, "_BLOCK", 5)
    assert retrieve_pairs(features, reference=names, per_image=VIEWS - 1, config=SETTINGS) == pairs


def test_queries_find_reference_images_best_first(features: Path) -> None:
    queries = [f"{place}/0.jpg" for place in range(PLACES)]
    reference = [name for name in sorted(places()) if name not in queries]
    pairs = retrieve_pairs(features, reference=reference, queries=queries, per_image=2, config=SETTINGS)
    assert [query for query, _ in pairs] == [query for query in queries for _ in range(2)]
    assert all(query[0] == name[0] for query, name in pairs)
    more = retrieve_pairs(features, reference=reference, queries=queries, per_image=7, config=SETTINGS)
    assert [pair for row in range(PLACES) for pair in more[7 * row : 7 * row + 2]] == list(pairs)


def test_unreadable_images_are_in_no_pair_and_missing_ones_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5", places(), {"0/torn.jpg": "truncated"})
    names = [*sorted(places()), "0/torn.jpg"]
    pairs = retrieve_pairs(path, reference=names, per_image=3, config=SETTINGS)
    assert "0/torn.jpg" not in {name for pair in pairs for name in pair}
    with pytest.raises(DataError, match="no features of image 'absent.jpg'"):
        retrieve_pairs(path, reference=[*names, "absent.jpg"], per_image=3, config=SETTINGS)


def test_images_without_any_keypoints_are_an_error(tmp_path: Path) -> None:
    blank = described(np.zeros((0, 16)))
    path = write(tmp_path / "blank.h5", {"a.jpg": blank, "b.jpg": blank})
    with pytest.raises(DataError, match=r"expected at least 8 descriptors .* got 0 of 2 images"):
        retrieve_pairs(path, reference=["a.jpg", "b.jpg"], per_image=1, config=SETTINGS)
    with pytest.raises(DataError, match="not found"):
        retrieve_pairs(tmp_path / "absent.h5", reference=["a.jpg"], per_image=1)


def test_queries_without_keypoints_alone_are_an_error(features: Path) -> None:
    reference = [name for name in sorted(places()) if name != BLANK]
    with pytest.raises(DataError, match="none of 1 images"):
        retrieve_pairs(features, reference=reference, queries=[BLANK], per_image=3, config=SETTINGS)


def test_photographs_of_real_places_find_each_other(shared_data, tmp_path: Path) -> None:
    """A door and a church among photographs of anything else. Share of pairs of one place: 1.00 and 0.88 when this was
    written; by chance 0.27 and 0.22. A pair that both images choose counts once, which costs right ones only."""
    from matchlib.features.config import SiftConfig
    from matchlib.features.extract import extract_features
    from matchlib.features.sift import build_rootsift

    door, church, others = (shared_data(name) for name in ("sfm_lund_door", "sfm_sacre_coeur", "photos"))
    root = others.parent
    seen = {path: folder.name for folder in (door, church) for path in sorted(folder.glob("images/*.[jJ]*"))}
    place = {path.relative_to(root).as_posix(): name for path, name in seen.items()}
    assert len(place) == 12 + 10
    names = [*place, *(path.relative_to(root).as_posix() for path in sorted(others.glob("*.jpg"))[:20])]
    extractor = build_rootsift(SiftConfig(max_keypoints=1000), None, "cpu")
    extract_features(root, names, extractor=extractor, out=tmp_path / "f.h5", show_progress=False)
    settings = VladConfig(sample=20_000)
    pairs = retrieve_pairs(
        tmp_path / "f.h5", reference=names, queries=tuple(place), per_image=5, config=settings
    )
    for name in ("sfm_lund_door", "sfm_sacre_coeur"):
        found = [place.get(second) == name for first, second in pairs if place[first] == name]
        assert len(found) >= 25 and np.mean(found) > 0.75, name


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: VladConfig(clusters=0), "vlad.clusters: expected at least 1"),
        (lambda: VladConfig(sample=10), r"vlad.sample: expected at least `clusters` \(64\), got 10"),
        (lambda: VladConfig(iterations=0), "vlad.iterations"),
        (lambda: VladConfig(max_keypoints=0), "vlad.max_keypoints"),
        (lambda: RetrievalConfig(features="sift", per_image=0), "per_image: expected at least 1, or null"),
    ],
)
def test_settings_are_checked(make, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make()
