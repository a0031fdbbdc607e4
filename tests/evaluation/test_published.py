"""Published result files: their numbers, and what happens to hostile ones."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchlib.errors import DataError
from matchlib.evaluation.config import SPLITS, THRESHOLDS_PX
from matchlib.evaluation.hpatches import HPatchesProtocol, HPatchesResult, PairResult
from matchlib.evaluation.published import read_published_cache, write_published_cache

# Values of the files' own project: MMA@1..10 and MMAscore, overall / illumination / viewpoint.
# Source: result files of PoSFeat (CVPR 2022), ASLFeat, DISK, R2D2, as recomputed independently from them.
PUBLISHED = """
aslfeat all            .3979 .6125 .7226 .7837 .8213 .8413 .8537 .8610 .8659 .8689 .7390
aslfeat illumination   .4692 .6637 .7745 .8381 .8779 .8959 .9078 .9147 .9194 .9222 .7949
aslfeat viewpoint      .3318 .5650 .6744 .7332 .7687 .7906 .8035 .8112 .8163 .8194 .6870
disk-d-2k-official all            .4153 .6685 .7534 .7945 .8134 .8248 .8329 .8386 .8428 .8457 .7435
disk-d-2k-official illumination   .4865 .7182 .7943 .8407 .8602 .8711 .8796 .8855 .8896 .8925 .7931
disk-d-2k-official viewpoint      .3493 .6224 .7153 .7515 .7700 .7818 .7896 .7951 .7993 .8023 .6975
r2d2 all               .2746 .5281 .6864 .7548 .7981 .8198 .8340 .8429 .8496 .8537 .6949
r2d2 illumination      .3228 .5468 .7147 .7789 .8285 .8518 .8673 .8770 .8850 .8893 .7267
r2d2 viewpoint         .2299 .5108 .6600 .7324 .7698 .7902 .8032 .8113 .8168 .8207 .6654
d2-net all             .1269 .2767 .4057 .5143 .5995 .6627 .7095 .7439 .7688 .7864 .5190
d2-net illumination    .1937 .3698 .5021 .6092 .6914 .7504 .7932 .8248 .8478 .8636 .6046
d2-net viewpoint       .0648 .1902 .3162 .4261 .5141 .5812 .6318 .6687 .6955 .7148 .4395
superpoint all         .3393 .5422 .6446 .6968 .7289 .7484 .7625 .7739 .7831 .7898 .6582
superpoint illumination .4301 .5943 .6938 .7470 .7828 .8016 .8143 .8255 .8344 .8403 .7149
superpoint viewpoint   .2550 .4939 .5988 .6501 .6787 .6991 .7143 .7260 .7354 .7428 .6055
hesaff all             .3134 .4864 .5624 .6097 .6406 .6617 .6770 .6882 .6969 .7036 .5839
hesaff illumination    .3362 .4579 .5135 .5581 .5874 .6072 .6220 .6333 .6426 .6499 .5438
hesaff viewpoint       .2921 .5129 .6079 .6577 .6900 .7123 .7281 .7392 .7473 .7535 .6211
delf-new all           .4381 .4604 .4943 .5347 .5774 .6184 .6545 .6855 .7102 .7300 .5706
delf-new illumination  .8942 .8951 .8973 .9000 .9029 .9060 .9082 .9116 .9139 .9157 .9030
delf-new viewpoint     .0147 .0568 .1202 .1955 .2751 .3513 .4188 .4757 .5210 .5576 .2619
"""
# Mean features per image; mean matches per pair overall, illumination, viewpoint; fewest and most per pair.
COUNTS = """
aslfeat             4013.53 2009.75 1863.28 2145.75 129 4165
disk-d-2k-official  2048.00 1024.17 1106.23  947.96 150 1839
r2d2                4995.99 1850.49 2084.57 1633.12 229 3989
d2-net              2994.07 1182.57  964.59 1384.99 155 5804
superpoint          1562.61  883.44  667.83 1083.65  20 5100
hesaff              6710.14 2851.68 1585.80 4027.14 178 14198
delf-new            4590.00 1940.29 2031.87 1855.25 357 5668
"""


@pytest.fixture
def published_folder(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("hpatches_cache")


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines(), ids=lambda line: "-".join(line.split()[:2]))
def test_published_curves_are_reproduced(line: str, published_folder: Path) -> None:
    method, split, *numbers = line.split()
    result = read_published_cache(published_folder / f"{method}.npy")
    expected = np.array(numbers, dtype=float)
    assert result.label == method
    np.testing.assert_allclose(result.mma(split)[:10], expected[:10], rtol=0, atol=0.51e-4)  # type: ignore[arg-type]
    assert result.score(split) == pytest.approx(expected[10], abs=0.51e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", COUNTS.strip().splitlines(), ids=lambda line: line.split()[0])
def test_published_counts_are_reproduced(line: str, published_folder: Path) -> None:
    method, *numbers = line.split()
    result = read_published_cache(published_folder / f"{method}.npy")
    found = [result.mean_features(), *(result.mean_matches(split) for split in SPLITS)]
    assert [f"{value:.2f}" for value in found] == numbers[:4]
    assert [result.pair_matches.min(), result.pair_matches.max()] == [int(n) for n in numbers[4:]]
    assert len(result.image_features) == 648 and int(result.pair_is_illumination.sum()) == 260
    assert len(result.pair_matches) == 540


# ---------------------------------------------------------------- our own results in that layout
def small_result() -> HPatchesResult:
    pairs = []
    for row, name in enumerate(("i_one", "v_one", "v_two")):
        for k in range(2, 7):
            accuracy = tuple(min(1.0, (row + k + t) / 30) for t in range(15))
            pairs.append(
                PairResult(
                    sequence=name,
                    k=k,
                    features0=10 * row,
                    features1=k,
                    matches=row * k,
                    accuracy=accuracy,
                    corner_error_px=1.0,
                )
            )
    return HPatchesResult(
        label="ours",
        protocol=HPatchesProtocol(sequences="all_present"),
        features_digest="d",
        image_features=tuple(range(18)),
        pairs=tuple(pairs),
    )


def test_our_result_survives_the_published_layout(tmp_path: Path) -> None:
    result = small_result()
    write_published_cache(result, tmp_path / "ours.npy")
    back = read_published_cache(tmp_path / "ours.npy")
    assert back.label == "ours" and read_published_cache(tmp_path / "ours.npy", label="x").label == "x"
    for split in SPLITS:
        np.testing.assert_allclose(back.mma(split), result.mma(split), atol=1e-12)
        assert back.mean_matches(split) == pytest.approx(result.mean_matches(split))
        assert back.score(split) == pytest.approx(result.score(split))
    assert back.mean_features() == result.mean_features()
    summary, own = back.summary(), result.summary()
    assert summary["viewpoint"]["mma@3"] == pytest.approx(own["viewpoint"]["mma@3"])
    assert set(summary["all"]) <= set(own["all"]) and set(summary) <= set(own)


def test_other_projects_can_read_our_files(tmp_path: Path) -> None:
    """As D2-Net's notebook does it."""
    result = small_result()
    write_published_cache(result, tmp_path / "ours.npy")
    i_err, v_err, (types, n_feats, n_matches) = np.load(tmp_path / "ours.npy", allow_pickle=True)
    assert list(i_err) == list(THRESHOLDS_PX) and (types == "v").sum() == 10 and len(n_feats) == 18
    assert v_err[3] / 10 == pytest.approx(result.mma("viewpoint")[2])
    assert n_matches.tolist() == [pair.matches for pair in result.pairs]


# ---------------------------------------------------------------- hostile and broken files
def object_array_file(path: Path, payload: bytes) -> Path:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (3,)})
    path.write_bytes(stream.getvalue() + payload)
    return path


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "was_here"
    payload = pickle.dumps([Hostile(os.system, f"touch {trace}"), {}, []], protocol=protocol)
    path = object_array_file(tmp_path / "evil.npy", payload)
    with pytest.raises(DataError, match=r"evil\.npy: refused: the pickle asks for (posix|nt)\.system"):
        read_published_cache(path)
    assert not trace.exists()
    np.load(path, allow_pickle=True)
    assert trace.exists(), "the payload must work where nothing holds it back, else this test proves nothing"


@pytest.mark.parametrize(
    "harmful, named",
    [
        (Hostile(eval, "1 + 1"), r"\w+\.eval"),
        (Hostile(getattr, "x", "upper"), r"\w+\.getattr"),
        (Hostile(np.load, "x.npy", None, True), r"numpy.*\.load"),
        (Hostile(bytearray, 10), r"\w+\.bytearray"),
        (np.zeros(2, dtype=[("a", "i4")]), "dtype 'V4'"),
    ],
)
def test_every_other_global_is_refused_by_name(tmp_path: Path, harmful: Any, named: str) -> None:
    path = object_array_file(tmp_path / "evil.npy", pickle.dumps([harmful, {}, []], protocol=2))
    with pytest.raises(DataError, match=f"refused: the pickle asks for {named}"):
        read_published_cache(path)


def test_codecs_other_than_latin1_are_refused(tmp_path: Path) -> None:
    """A decompressing codec could turn a few bytes into gigabytes."""
    payload = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    with pytest.raises(DataError, match="codec 'zlib'"):
        read_published_cache(object_array_file(tmp_path / "evil.npy", payload))


@pytest.mark.parametrize("cut", [3, 20, 140, 400, -5])
def test_truncated_files_are_named(tmp_path: Path, cut: int) -> None:
    write_published_cache(small_result(), tmp_path / "ours.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "ours.npy").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"cut\.npy: "):
        read_published_cache(tmp_path / "cut.npy")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    np.save(tmp_path / "short.npy", np.array([{1: 0.5}, {1: 0.5}, [["i"], [1], [1]]], dtype=object))
    np.save(tmp_path / "pair.npy", np.array([{}, {}], dtype=object))
    (tmp_path / "page.npy").write_text("<html>")
    for name in ("numbers", "short", "pair", "page", "absent"):
        with pytest.raises(DataError, match=rf"{name}\.npy: "):
            read_published_cache(tmp_path / f"{name}.npy")


def test_an_array_of_forged_addresses_is_refused(tmp_path: Path) -> None:
    """NumPy's own constructor would take the bytes for addresses of objects."""
    forged = pickle.PROTO + b"\x02" + b"cnumpy\nndarray\n(I3\n\x85U\x01OU\x18" + b"\x41" * 24 + b"tR."
    header = tmp_path / "evil.npy"
    body = np.empty(3, dtype=object)
    np.save(header, body, allow_pickle=True)
    start = header.read_bytes().index(b"\n") + 1
    header.write_bytes(header.read_bytes()[:start] + forged)
    with pytest.raises(DataError, match=r"evil\.npy: (refused|damaged)"):
        read_published_cache(header)
