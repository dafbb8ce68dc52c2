from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid
from bids_scseg.training.session import jitter_centerlines, read_detectability, what_is_cord


def geometry() -> Geometry:
    """24 x 24 x 100 voxels of 0.5 mm round a straight cord at x = y = 0, z = 0 … 49.5 mm."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:2, 3] = -5.75
    grid = Grid(shape=(24, 24, 100), affine=affine)
    s = np.arange(0.0, 50.0)
    line = Centerline(s_mm=s, xy_mm=np.zeros((s.size, 2)), measured=np.ones(s.size, bool))
    slab = Slab(key="T2Sag", index=0, file="a", grid=grid)
    return Geometry(frame="centerline", anchor="T2Sag", grid=grid, slabs=(slab,), centerlines={"T2Sag": line})


def test_jitter_has_the_stated_size_and_is_smooth() -> None:
    moved = [jitter_centerlines(geometry(), np.random.default_rng(n), sd_mm=0.4) for n in range(200)]
    xy = np.stack([one.centerlines["T2Sag"].xy_mm for one in moved])
    # linear interpolation between independent nodes has 2/3 of their variance on average
    assert xy.std() == pytest.approx(0.4 * np.sqrt(2 / 3), rel=0.1)
    assert np.abs(np.diff(xy, axis=1)).max() < 0.3
    same = jitter_centerlines(geometry(), np.random.default_rng(0), sd_mm=0.0)
    assert same.centerlines["T2Sag"] == geometry().centerlines["T2Sag"]


def test_detectability_is_read_from_the_truth_table(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(
        "index\tname\trealised_T2Sag\trealised_STIR\n1\ta\tvisible\tfaint\n2\tb\tinvisible\tn/a\n",
        encoding="utf-8",
    )
    assert read_detectability(path, ("T2Sag", "STIR", "MP2RAGE")) == {
        "1": {"visible": ["T2Sag"], "faint": ["STIR"]},
        "2": {"visible": [], "faint": []},
    }


def test_what_a_finder_finds_is_taken_as_by_the_app():
    """A cord with a lump on top loses the lump; a find of 8 mm in 50 mm is no cord."""
    grid = Grid(shape=(30, 30, 50), affine=np.eye(4))
    share = np.zeros(grid.shape, np.float32)
    share[12:20, 12:20, :30] = 0.99
    share[4:28, 4:28, 30:] = 0.99
    taken = what_is_cord(share, grid)
    assert taken[12:20, 12:20, :30].min() == np.float32(0.99)
    assert not taken[..., 32:].any()
    share[..., 8:] = 0
    assert not what_is_cord(share, grid).any()
