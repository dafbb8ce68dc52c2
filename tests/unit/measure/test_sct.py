"""The comparison profile against the toolbox's own tables and against an analytic cosine."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_scseg.errors import GeometryError
from bids_scseg.measure.sct import SCT_COLUMNS, sct_lesion_table, slice_cosines
from bids_scseg.space.grid import Grid


def _load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), Grid(shape=image.shape, affine=image.affine)


@pytest.mark.parametrize(
    ("folder", "lesion", "cord"),
    [
        ("fake_lesion", "t2_fake_lesion_lesion_seg", "t2_fake_lesion_sc_seg"),
        ("unf01", "sub-unf01_T2w_lesion-manual", "sub-unf01_T2w_seg-manual"),
    ],
)
def test_against_the_toolbox(sct_reference, folder, lesion, cord):
    mask, grid = _load(sct_reference / folder / f"{lesion}.nii.gz")
    table = sct_lesion_table(mask, _load(sct_reference / folder / f"{cord}.nii.gz")[0], grid=grid)
    reference = pd.read_csv(sct_reference / folder / "sct_analyze_lesion.tsv", sep="\t")
    assert len(table) == len(reference) == 1
    row, expected = table.iloc[0], reference.iloc[0]
    assert row["volume_mm3"] == pytest.approx(expected["volume [mm3]"], rel=1e-6)
    assert row["length_mm"] == pytest.approx(expected["length [mm]"], rel=1e-5)
    assert row["max_equivalent_diameter_mm"] == pytest.approx(
        expected["max_equivalent_diameter [mm]"], rel=1e-5
    )
    # The soft cord mask of one of them is handled a little differently.
    assert row["max_axial_damage_ratio"] == pytest.approx(expected["max_axial_damage_ratio []"], rel=3e-3)


def test_connectivity_against_the_toolbox(sct_reference):
    mask, grid = _load(sct_reference / "connectivity" / "lesion.nii.gz")
    reference = pd.read_csv(sct_reference / "connectivity" / "sct_analyze_lesion.tsv", sep="\t")
    table = sct_lesion_table(mask, None, grid=grid)
    assert sorted(table["volume_mm3"]) == pytest.approx(sorted(reference["volume [mm3]"]), rel=1e-5)
    assert table["length_mm"].isna().all()


def test_cosine_of_a_tilted_cord():
    """A cord that moves 0.5 voxels of 0.8 mm per slice of 2 mm: tan = 0.2."""
    i, j, k = np.indices((40, 40, 30))
    cord = ((np.hypot(i - 12 - 0.5 * k, j - 20)) <= 5).astype(float)
    cosine = slice_cosines(cord, np.array([0.8, 0.8, 2.0]))
    assert cosine == pytest.approx(np.full(30, 1 / np.sqrt(1.04)), rel=2e-3)


def test_orientation_does_not_matter():
    rng = np.random.default_rng(1)
    cord = np.zeros((12, 14, 16))
    cord[3:9, 4:10, 1:15] = 1
    lesion = (rng.random(cord.shape) < 0.05) & (cord > 0)
    plain = Grid(shape=cord.shape, affine=np.diag([0.7, 0.8, 2.0, 1.0]))
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -0.8, 2.0, 0.7, 1  # axes P, S, R
    turned = [np.transpose(v, (1, 2, 0))[::-1] for v in (lesion, cord)]
    one = sct_lesion_table(lesion, cord, grid=plain)
    two = sct_lesion_table(*turned, grid=Grid(shape=turned[0].shape, affine=affine))
    for name in ("volume_mm3", "length_mm", "max_axial_damage_ratio"):
        assert sorted(one[name]) == pytest.approx(sorted(two[name]))


def test_empty_and_misfit():
    grid = Grid(shape=(4, 4, 4), affine=np.eye(4))
    table = sct_lesion_table(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), grid=grid)
    assert list(table.columns) == [column.name for column in SCT_COLUMNS]
    assert len(table) == 0
    with pytest.raises(GeometryError, match="cord"):
        sct_lesion_table(np.zeros((4, 4, 4)), np.zeros((3, 4, 4)), grid=grid)
