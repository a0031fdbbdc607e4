from __future__ import annotations

import struct

import numpy as np
import pytest

from matchlib.completion import verify_folder
from matchlib.errors import ConfigError, DataError
from matchlib.match_sets.index import RECORDS, read_pairs
from matchlib.match_sets.tfmatch_files import export_match_sets, import_match_sets, read_match_set


def a_file(path, inliers=2):
    """53,432 bytes packed by hand, value by value as tfmatch's layout says; every number tells its place."""
    header = [12.0, 13.0, float(inliers), 1000, 800, 900, 700]
    header += [100 + k for k in range(9)] + [200 + k for k in range(9)]
    header += [0.01 * k for k in range(9)] + [300 + k for k in range(12)]
    affine0 = [1e-4 * k + 1 for k in range(6144)]
    affine1 = [-1e-4 * k - 1 for k in range(6144)]
    labels = [0.5] * inliers + [0.0] * (1024 - inliers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<13358f", *header, *affine0, *affine1, *labels))
    return path


def test_a_file_made_by_hand_is_understood(tmp_path):
    record = read_match_set(a_file(tmp_path / "0_0_5_7.match_set"))
    geometry = record.geometry
    assert (geometry.global_index, geometry.inliers) == ((12, 13), 2)
    assert (geometry.size0, geometry.size1) == ((1000, 800), (900, 700))
    assert (
        geometry.K0[1, 2] == 105
        and geometry.K1[0, 0] == 200
        and geometry.T_0to1[2].tolist() == [308, 309, 310, 311]
    )
    assert geometry.T_0to1[3].tolist() == [0, 0, 0, 1] and geometry.E_0to1[0, 2] == pytest.approx(0.02)
    assert record.affine0[1, 0] == pytest.approx(1.0006) and record.affine1[1023, 5] == pytest.approx(-1.6143)
    assert record.labels[:3].tolist() == [0.5, 0.5, 0]


def test_import_then_export_gives_the_bytes_back(tmp_path):
    names = ["3_0_12_40.match_set", "10_0_3_0.match_set"]
    files = [a_file(tmp_path / "in" / name, inliers=k + 11) for k, name in enumerate(names)]
    assert import_match_sets(files, tmp_path / "set", first_global_index=10) == 2
    rows = read_pairs(tmp_path / "set")
    assert [(r.pair, r.index0, r.index1, r.rotation_deg, r.rot_diff_deg) for r in rows] == [
        (3, 2, 3, 12, 40),
        (10, 2, 3, 3, 0),
    ]
    assert verify_folder(tmp_path / "set") == []
    assert export_match_sets(tmp_path / "set", tmp_path / "again") == 2
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_a_built_set_exports_files_of_upstreams_size_and_name(build_corr, tmp_path):
    folder = build_corr(slots=1024, min_inlier_ratio=0.01, angles="tfmatch")
    assert export_match_sets(folder, tmp_path / "files") == 3
    paths = sorted((tmp_path / "files").iterdir())
    assert {path.stat().st_size for path in paths} == {53_432}
    assert [path.name.rsplit("_", 2)[0] for path in paths] == ["0_0_10", "1_0_25", "3_0_23"]
    assert import_match_sets(paths, tmp_path / "set", first_global_index=10) == 3
    assert (tmp_path / "set" / RECORDS).read_bytes() == (folder / RECORDS).read_bytes()
    ours, theirs = read_pairs(folder), read_pairs(tmp_path / "set")
    assert [(r.index0, r.rows0, r.rows1) for r in ours] == [(r.index0, r.rows0, r.rows1) for r in theirs]


def test_other_slot_counts_cannot_be_exported(build_corr, tmp_path):
    with pytest.raises(ConfigError, match="has 64 slots"):
        export_match_sets(build_corr(), tmp_path / "files")
    with pytest.raises(DataError, match="not finished"):
        export_match_sets(tmp_path, tmp_path / "files")


def test_foreign_files_are_refused_by_name(tmp_path):
    good = a_file(tmp_path / "0_0_5_7.match_set")
    (tmp_path / "1_0_5_7.match_set").write_bytes(good.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"1_0_5_7.match_set: expected 53432 bytes, got 53428"):
        read_match_set(tmp_path / "1_0_5_7.match_set")
    with pytest.raises(DataError, match="expected a name"):
        import_match_sets([tmp_path / "x.match_set"], tmp_path / "set", first_global_index=0)
    with pytest.raises(DataError, match="do not fit a scene that begins at image 13"):
        import_match_sets([good], tmp_path / "set", first_global_index=13)
    assert not (tmp_path / "set").exists()


def test_float_indices_hold_the_largest_gl3d_index():
    assert np.float32(181_279) == 181_279
