from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.study import Plan
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid
from bids_scseg.training.prepare import _prepared_label, _truth_file, jitter_centerlines, read_detectability


def geometry() -> Geometry:
    """24 x 24 x 100 voxels of 0.5 mm round a straight cord at x = y = 0, z = 0 … 49.5 mm."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:2, 3] = -5.75
    grid = Grid(shape=(24, 24, 100), affine=affine)
    s = np.arange(0.0, 50.0)
    line = Centerline(s_mm=s, xy_mm=np.zeros((s.size, 2)), measured=np.ones(s.size, bool))
    slab = Slab(key="T2Sag", index=0, file="a", grid=grid)
    return Geometry(frame="centerline", anchor="T2Sag", grid=grid, slabs=(slab,), centerlines={"T2Sag": line})


def write_truth(path: Path, label: np.ndarray, *, shift: float = 0.0) -> Path:
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:2, 3] = -5.75 + shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), path)
    return path


def test_jitter_has_the_stated_size_and_is_smooth() -> None:
    moved = [jitter_centerlines(geometry(), np.random.default_rng(n), sd_mm=0.4) for n in range(200)]
    xy = np.stack([one.centerlines["T2Sag"].xy_mm for one in moved])
    # linear interpolation between independent nodes has 2/3 of their variance on average
    assert xy.std() == pytest.approx(0.4 * np.sqrt(2 / 3), rel=0.1)
    assert np.abs(np.diff(xy, axis=1)).max() < 0.3
    same = jitter_centerlines(geometry(), np.random.default_rng(0), sd_mm=0.0)
    assert same.centerlines["T2Sag"] == geometry().centerlines["T2Sag"]


def test_labels_follow_the_world(tmp_path: Path) -> None:
    label = np.zeros((24, 24, 100), np.uint8)
    label[10:14, 10:14, 40:60] = 3
    out = _prepared_label(geometry(), write_truth(tmp_path / "a.nii.gz", label))
    assert out.dtype == np.uint8
    assert np.array_equal(out, label)
    # the same voxels in a world moved by one voxel
    moved = _prepared_label(geometry(), write_truth(tmp_path / "b.nii.gz", label, shift=0.5))
    assert np.array_equal(moved[11:15, 11:15, 40:60], np.full((4, 4, 20), 3))


def test_an_empty_map_is_a_map_and_255_lesions_are_too_many(tmp_path: Path) -> None:
    empty = _prepared_label(geometry(), write_truth(tmp_path / "a.nii.gz", np.zeros((24, 24, 100))))
    assert not empty.any()
    full = np.full((24, 24, 100), 255)
    with pytest.raises(DataError, match="255 lesions"):
        _prepared_label(geometry(), write_truth(tmp_path / "b.nii.gz", full))


def test_detectability_is_read_from_the_truth_table(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text(
        "index\tname\trealised_T2Sag\trealised_STIR\n1\ta\tvisible\tfaint\n2\tb\tinvisible\tn/a\n",
        encoding="utf-8",
    )
    assert read_detectability(table, ("T2Sag", "STIR", "MP2RAGE")) == {
        "1": {"visible": ["T2Sag"], "faint": ["STIR"]},
        "2": {"visible": [], "faint": []},
    }


def test_a_session_needs_exactly_one_lesion_map(tmp_path: Path) -> None:
    plan = Plan(subject="x", session=None, dataset="", recipe="", sequences=(), missing=(), anchor="T2Sag")
    with pytest.raises(MissingInputError, match="0 lesion maps"):
        _truth_file(plan, tmp_path)
    path = tmp_path / "sub-x" / "anat" / "sub-x_seg-lesions_res-iso_desc-truth_dseg.nii.gz"
    write_truth(path, np.zeros((4, 4, 4)))
    assert _truth_file(plan, tmp_path) == path
