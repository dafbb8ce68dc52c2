"""The reference grid and how images are placed on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess import frames
from bids_scseg.recipe.model import GridSpec
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

PHANTOM = phantoms.Phantom(top_mm=30, bottom_mm=-40)


def estimate(
    key: str, grid: Grid, *, index: int = 0, phantom: phantoms.Phantom = PHANTOM
) -> frames.SlabEstimate:
    slab = Slab(key=key, index=index, file=f"{key}{index}", grid=grid)
    return frames.SlabEstimate(slab=slab, cord=phantoms.cord_mask(phantom, grid))


def fitted(*slabs: frames.SlabEstimate, spec: GridSpec | None = None) -> Geometry:
    estimates = frames.Estimates(anchor=slabs[0].slab.key, slabs=slabs)
    return frames.fit_centerline_frame(estimates, spec or GridSpec())


@given(
    orientation=st.sampled_from(["RAS", "LAS", "LPS", "PSR", "AIL", "SRP"]),
    turn=st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20)),
)
def test_axes_are_a_rotation_towards_right_front_up(
    orientation: str, turn: tuple[float, float, float]
) -> None:
    grid = phantoms.lattice(size_mm=(6, 8, 10), orientation=orientation, rotation_deg=turn)
    axes = frames.reference_axes(grid)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert (np.diag(axes) > 0.5).all()


def test_a_sheared_lattice_gives_a_rotation() -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.2
    axes = frames.reference_axes(Grid(shape=(4, 4, 4), affine=affine))
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)


def test_grid_numbers_by_hand() -> None:
    # Voxels of 1 mm centred at half millimetres, cord from -40 to 30 mm: masks fill [-40, 30], so with 10 mm
    # margin the slices run from -50 to 40 mm: 90 / 0.5 + 1 = 181.
    geometry = fitted(estimate("A", phantoms.lattice(size_mm=(48, 60, 120))))
    assert geometry.grid.shape == (48, 48, 181)
    assert geometry.s_mm[[0, -1]].tolist() == [-50.0, 40.0]
    assert geometry.grid.spacing == pytest.approx([0.5, 0.5, 0.5])
    assert geometry.axis_mm == pytest.approx(
        geometry.centerlines["A"].xy_mm[geometry.centerlines["A"].measured].mean(axis=0), abs=0.1
    )


@given(
    turn=st.tuples(st.floats(-15, 15), st.floats(-15, 15), st.floats(-15, 15)),
    height=st.floats(-30, 30),
    margin=st.floats(0, 12),
)
def test_grid_encloses_every_cord_with_margin(
    turn: tuple[float, float, float], height: float, margin: float
) -> None:
    grids = {
        "A": phantoms.lattice(spacing=(3, 1.5, 1.5), size_mm=(48, 60, 70), rotation_deg=turn),
        "B": phantoms.lattice(spacing=(1.5, 1.5, 4), size_mm=(48, 60, 70), center=(0, 0, height)),
    }
    slabs = [estimate(key, grid) for key, grid in grids.items()]
    geometry = fitted(*slabs, spec=GridSpec(margin_mm=margin))
    for item in slabs:
        assert item.cord is not None
        s = geometry.height(item.slab.to_world(np.argwhere(item.cord)))
        assert s.min() - margin >= geometry.s_mm[0] - 1e-6
        assert s.max() + margin <= geometry.s_mm[-1] + 1e-6


@given(orientation=st.sampled_from(["LAS", "LPS", "PSR", "AIL", "SRP"]))
def test_geometry_does_not_depend_on_storage(orientation: str) -> None:
    grid = phantoms.lattice(spacing=(2.5, 1, 1), size_mm=(48, 60, 90), rotation_deg=(8, 2, 3))
    expected = fitted(estimate("A", grid))
    stored = phantoms.restored_as(np.zeros(grid.shape, np.uint8), grid, orientation)[1]
    geometry = fitted(estimate("A", stored))
    assert geometry.grid == expected.grid
    assert geometry.centerlines["A"] == expected.centerlines["A"]


@given(st.tuples(st.floats(0, 47), st.floats(0, 47), st.floats(0, 150)))
def test_points_go_there_and_back(ijk: tuple[float, float, float]) -> None:
    geometry = POINTS_GEOMETRY
    back = geometry.to_prepared(geometry.to_world(ijk, key="A"), key="A")
    assert np.abs(back - ijk).max() * 0.5 < 1e-6


POINTS_GEOMETRY = fitted(estimate("A", phantoms.lattice(size_mm=(48, 60, 90), rotation_deg=(12, 4, -7))))


def test_neighbouring_slabs_share_their_overlap() -> None:
    upper = phantoms.lattice(size_mm=(48, 60, 60), center=(0, 0, 10))  # -20 to 40 mm
    lower = phantoms.lattice(size_mm=(48, 60, 40), center=(0, 0, -20))  # -40 to 0 mm
    geometry = fitted(estimate("A", upper), estimate("A", lower, index=1))
    above, below = geometry.slabs_of("A")
    assert above.serves[0] == pytest.approx(-10, abs=0.5)
    assert above.serves[1] == np.inf
    assert below.serves == (-np.inf, above.serves[0])


def test_stacks_apart_part_in_the_gap() -> None:
    upper = phantoms.lattice(size_mm=(48, 60, 20), center=(0, 0, 20))  # 10 to 30 mm
    lower = phantoms.lattice(size_mm=(48, 60, 20), center=(0, 0, -20))  # -30 to -10 mm
    geometry = fitted(estimate("A", upper), estimate("A", lower, index=1))
    assert geometry.slabs_of("A")[0].serves[0] == pytest.approx(0, abs=0.5)


def test_fields_of_view_need_not_meet() -> None:
    low = replace(PHANTOM, bottom_mm=-100)
    geometry = fitted(
        estimate("A", phantoms.lattice(size_mm=(48, 60, 30), center=(0, 0, 10))),
        estimate("B", phantoms.lattice(size_mm=(48, 60, 30), center=(0, 0, -70)), phantom=low),
    )
    s = np.array([-60.0, -75, -80])
    assert np.abs(geometry.centerlines["B"].at(s) - low.center(s)).max() < 0.3
    assert not geometry.centerlines["A"].is_measured(s).any()


def test_no_cord_is_an_error() -> None:
    grid = phantoms.lattice(size_mm=(8, 8, 8))
    blind = frames.SlabEstimate(slab=Slab(key="A", index=0, file="a", grid=grid))
    with pytest.raises(CordNotFoundError):
        fitted(blind)
    with pytest.raises(GeometryError):
        frames.fit_box(frames.Estimates(anchor="B", slabs=(blind,)), GridSpec())


def test_box_covers_the_whole_image_without_shift() -> None:
    grid = phantoms.lattice(spacing=(2, 1, 1), size_mm=(20, 30, 40), orientation="PSR")
    blind = frames.SlabEstimate(slab=Slab(key="A", index=0, file="a", grid=grid))
    spec = GridSpec(spacing_mm=1.0, window_vox=None, margin_mm=0.0)
    geometry = frames.FRAMES["box"](frames.Estimates(anchor="A", slabs=(blind,)), spec)
    # The field of view spans [-20, 20] mm, so voxel centres on whole millimetres run from -20 to 20.
    assert geometry.grid.shape == (20, 30, 41)
    assert geometry.grid.to_world([9.5, 14.5, 20]) == pytest.approx([0, 0, 0], abs=1e-9)
    data = np.random.default_rng(0).random(grid.shape)
    volume, coverage = geometry.apply([data], key="A")
    assert coverage.all()
    assert volume.mean() == pytest.approx(data.mean(), rel=0.01)


def test_frames_are_named_in_one_place() -> None:
    assert set(frames.FRAMES) == {"centerline", "box", "rigid"}
