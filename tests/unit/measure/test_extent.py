"""What the images show beyond the ends of the cord masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_scseg.measure.extent import beyond_masks, cut_lesions, most_beyond, tapers_off
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

LOW, HIGH = 10.0, 47.0  # ends of the mask, mm along s


def sagittal(low, high, *, xfm=None, tilt_deg=0.0, index=0):
    """A sagittal slab of 1 mm voxels that shows s from low to high at its middle."""
    angle = np.radians(tilt_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    shape = (10, 100, round((high - low) / np.cos(angle)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [3, 1, 1]
    affine[:3, 3] = [0, 0, (low + high) / 2] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape=shape, affine=affine)
    return Slab(
        key="T2Sag", index=index, file=f"sag{index}", grid=grid, xfm=np.eye(4) if xfm is None else xfm
    )


@pytest.fixture
def session(make_geometry, round_cord):
    """Geometry of some slabs, and a cord mask from s = 10 to 47 mm."""

    def make(*slabs: Slab) -> tuple[Geometry, np.ndarray]:
        geometry = make_geometry(slices=120)  # voxel centres at 0, 0.5, …
        cord = round_cord(geometry)
        middles = geometry.s_mm
        return replace(geometry, slabs=slabs), cord * ((middles > LOW) & (middles < HIGH))

    return make


def lengths(item):
    return item.shown_mm, item.masked_mm, item.above_mm, item.below_mm


def test_a_mask_that_stops_early_leaves_most_of_the_image_out(session):
    geometry, cord = session(sagittal(-140.0, 100.0))
    whole, one = beyond_masks(geometry, cord)
    # voxel centres at 10.5 … 46.5 have cord: 10.25 to 46.75 mm
    assert lengths(one) == pytest.approx((240.0, 36.5, 53.25, 150.25))
    assert (whole.key, one.key, whole.mm) == ("", "T2Sag", pytest.approx(203.5))
    assert one.much and not one.perhaps_no_cord
    assert most_beyond((whole, one)) is one
    assert one.sentence == (
        "T2Sag shows 240 mm along S-I, the cord masks reach over 36 mm of it; 53 mm above and 150 mm below "
        "were not segmented"
    )


def test_a_mask_to_the_ends_leaves_nothing_out(session):
    geometry, cord = session(sagittal(LOW, HIGH))
    assert beyond_masks(geometry, cord)[1].mm == pytest.approx(0.5)
    assert most_beyond(beyond_masks(geometry, cord)) is None


@pytest.mark.parametrize(
    ("low", "high", "much"),
    [
        (-9.0, 67.0, False),  # 39.5 mm beyond
        (-10.0, 67.0, True),  # 40.5 mm
        (60.0, 120.0, True),  # none of it has a mask
        (60.0, 90.0, False),
    ],
)
def test_it_takes_a_long_rest(session, low, high, much):
    geometry, cord = session(sagittal(low, high))
    item = beyond_masks(geometry, cord)[1]
    assert item.much is much
    assert item.mm == pytest.approx(item.shown_mm - item.masked_mm)


@pytest.mark.parametrize(("low", "much"), [(-45.0, False), (-55.0, True)])
def test_it_takes_a_small_share(make_geometry, round_cord, low, much):
    geometry = replace(make_geometry(slices=240), slabs=(sagittal(low, 150.0),))  # a mask of 120 mm
    item = beyond_masks(geometry, round_cord(geometry))[1]
    assert item.much is much and item.mm > 70


def test_overlapping_and_moved_slabs_count_once_and_where_they_belong(session):
    moved = np.eye(4)
    moved[2, 3] = 6.0  # the lower slab's world lies 6 mm higher
    geometry, cord = session(sagittal(0.0, 100.0), sagittal(-74.0, 26.0, xfm=moved, index=1))
    whole, one = beyond_masks(geometry, cord)
    assert lengths(one) == pytest.approx((180.0, 36.5, 53.25, 90.25))
    assert lengths(whole) == lengths(one)


def test_a_turned_image_is_as_long_as_its_middle(session):
    geometry, cord = session(sagittal(-53.0, 107.0, tilt_deg=20.0))
    assert beyond_masks(geometry, cord)[1].shown_mm == pytest.approx(160.0, abs=1.0)


def test_a_head_above_and_what_follows_the_conus_may_hold_no_cord(session):
    geometry, cord = session(sagittal(LOW, 200.0))  # 153 mm above: may be head
    (item,) = beyond_masks(geometry, cord)[1:]
    assert item.much and item.perhaps_no_cord
    geometry, cord = session(sagittal(LOW, 290.0))  # no head is 243 mm high
    assert not beyond_masks(geometry, cord)[1].perhaps_no_cord
    geometry, cord = session(sagittal(-140.0, HIGH))
    assert not beyond_masks(geometry, cord)[1].perhaps_no_cord


def test_a_mask_that_ends_as_thin_as_the_conus_may_end_with_the_cord(session, round_cord):
    geometry, short = session(sagittal(-140.0, 60.0))
    tube = round_cord(geometry)  # 60 mm
    up = geometry.s_mm
    cone = np.stack([round_cord(geometry, radius=r)[:, :, 0] for r in np.clip(2 + up / 10, 2, 5)], axis=2)
    assert [tapers_off(mask > 0, geometry) for mask in (tube, cone, short * cone)] == [False, True, False]
    (stops,), (ends,) = (beyond_masks(geometry, mask)[1:] for mask in (tube, cone))
    assert stops.below_mm == ends.below_mm > 100
    assert (stops.perhaps_no_cord, ends.perhaps_no_cord) == (False, True)


def test_where_levels_are_known_only_c1_to_l2_counts(session):
    geometry, cord = session(sagittal(-140.0, 100.0))
    levels = [("C1", 50.0, 60.0), ("C2", 30.0, 50.0), ("L2", -70.0, -50.0)]
    item = beyond_masks(geometry, cord, levels=levels)[1]
    assert lengths(item) == pytest.approx((130.0, 36.5, 13.25, 80.25))
    # labels that end in the thorax say nothing of what follows
    item = beyond_masks(geometry, cord, levels=levels[:2])[1]
    assert item.below_mm == pytest.approx(150.25)


def test_without_any_cord_nothing_is_said(session):
    geometry, cord = session(sagittal(-140.0, 100.0))
    assert beyond_masks(geometry, np.zeros_like(cord)) == ()
    assert most_beyond(()) is None
    assert cut_lesions(np.ones(cord.shape, np.int32), np.zeros_like(cord)) == ()


def test_lesions_that_reach_the_end_of_the_mask_are_cut_there():
    cord = np.zeros((6, 6, 20), np.float32)
    cord[2:4, 2:4, 5:15] = 1
    labels = np.zeros(cord.shape, np.int32)
    labels[2, 2, 13:15] = 1  # to the upper end
    labels[3, 3, 5:7] = 2  # to the lower end
    labels[2, 3, 8:12] = 3  # in between
    labels[3, 2, 12:17] = 4  # a reader drew it beyond the end: whole
    assert cut_lesions(labels, cord) == (1, 2)
