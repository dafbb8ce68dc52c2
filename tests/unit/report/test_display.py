"""What figures show: orientation, windows, coverage, crops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.report import display
from bids_scseg.report.records import NativeImage
from bids_scseg.space.grid import Grid

ORDERS = list(itertools.permutations(range(3)))


@given(st.sampled_from(ORDERS), st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_storage_order_does_not_matter(order, signs):
    """The same anatomy, stored in any of 48 orders, is shown the same."""
    ras = np.arange(4 * 5 * 6, dtype=float).reshape(4, 5, 6)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    stored, matrix = np.transpose(ras, order), affine[:, [*order, 3]]
    for axis, sign in enumerate(signs):
        if sign < 0:
            matrix = matrix.copy()
            matrix[:3, 3] += matrix[:3, axis] * (stored.shape[axis] - 1)
            matrix[:3, axis] *= -1
            stored = np.flip(stored, axis)
    point = np.array([[3.0, 2.0, 12.0]])  # voxel (3, 1, 4) of the RAS array
    shown = display.canonical(
        NativeImage(
            file="x",
            image=stored,
            grid=Grid(shape=stored.shape, affine=matrix),
            cord=stored > 60,
            centerline_ras=point,
            measured=np.array([True]),
        )
    )
    np.testing.assert_array_equal(shown.image, ras)
    np.testing.assert_array_equal(shown.cord, ras > 60)
    np.testing.assert_allclose(shown.line, [[3, 1, 4]], atol=1e-9)
    np.testing.assert_allclose(shown.spacing, [1, 2, 3])


def test_an_empty_cord_mask_counts_as_none():
    grid = Grid(shape=(3, 3, 3), affine=np.eye(4))
    view = display.canonical(
        NativeImage(file="x", image=np.ones((3, 3, 3)), grid=grid, cord=np.zeros((3, 3, 3), bool))
    )
    assert view.cord is None
    assert display.cord_range(view, 2) == (0, 2)
    assert display.sagittal_indices(view, 3) == [1]
    assert display.slice_centre(view, 1) == (1.0, 1.0)


def test_not_finite_values_are_shown_as_zero():
    image = np.ones((3, 3, 3))
    image[0, 0, 0], image[1, 1, 1] = np.nan, np.inf
    view = display.canonical(NativeImage(file="x", image=image, grid=Grid(shape=(3, 3, 3), affine=np.eye(4))))
    assert view.image[0, 0, 0] == 0 and view.image[1, 1, 1] == 0


@pytest.mark.parametrize("values", [np.array([]), np.full(9, 3.0), np.array([np.nan])])
def test_windows_of_degenerate_images_have_a_width(values):
    low, high = display.grey_window(values)
    assert high - low == 1.0


def test_strip_is_the_mean_of_the_middle():
    volume = np.zeros((48, 48, 5))
    volume[22:26] = 2.0  # ±1 mm about 23.5 at 0.5 mm: voxels 22, 23, 24, 25
    np.testing.assert_array_equal(display.strip(volume, 0.5), np.full((48, 5), 2.0))
    assert display.strip(volume, 0.5, side="coronal").shape == (48, 5)
    assert display.strip(volume, 0.5, side="coronal")[22, 0] == 2.0
    assert display.strip(volume, 0.5, side="coronal")[21, 0] == 0.0


def test_examined_needs_half_of_the_cord():
    coverage = np.zeros((48, 48, 3), bool)
    coverage[:, :, 0] = True
    coverage[:24, :, 1] = True  # exactly half of a centred disc
    coverage[:20, :, 2] = True
    assert display.examined_slices(coverage, 0.5).tolist() == [True, True, False]


@given(st.lists(st.booleans(), max_size=30))
def test_runs_rebuild_the_flags(flags):
    rebuilt = np.zeros(len(flags), bool)
    for start, stop in display.runs(np.array(flags, bool)):
        assert stop > start
        rebuilt[start:stop] = True
    assert rebuilt.tolist() == flags


def test_extents():
    labels = np.zeros((6, 6, 10), np.int16)
    labels[1:3, 2, 4:8] = 7
    labels[5, 5, 9] = 2
    two, seven = display.extents(labels)
    assert (two.number, two.centre, two.k_range, two.voxels) == (2, (5.0, 5.0, 9.0), (9, 10), 1)
    assert (seven.number, seven.centre, seven.k_range, seven.voxels) == (7, (1.5, 2.0, 5.5), (4, 8), 8)
    assert display.extents(None) == [] and display.extents(np.zeros((2, 2, 2), int)) == []


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 12))
def test_spread_is_distinct_and_keeps_the_ends(low, length, count):
    picked = display.spread(low, low + length, count)
    assert picked == sorted(set(picked)) and len(picked) <= count
    assert picked[0] == low and (picked[-1] == low + length or count == 1)


def test_even_windows_follow_the_brightness(make_report):
    view = make_report(sequences=1, slices=200, count=0).sequences[0]
    fade = np.linspace(1, 0.3, 200)  # as a coil sees the end of its field
    low, high = display.even_window((view.prepared + 5) * fade, view.coverage, 0.5)
    ratio = (high - low) / fade
    assert ratio.max() / ratio.min() < 1.5 and high[0] > 2 * high[-1]


def test_even_window_without_data():
    low, high = display.even_window(np.ones((48, 48, 4)), np.zeros((48, 48, 4), bool), 0.5)
    assert not low.any() and (high == 1).all()
