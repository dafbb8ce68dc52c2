from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.training.augment import (
    IntensityDraw,
    SpatialDraw,
    apply_intensity,
    apply_spatial,
    augment,
    draw_intensity,
    draw_spatial,
    drifted,
)
from bids_scseg.training.config import AugmentConfig
from bids_scseg.training.sample import IGNORE, Sample

SHAPE = (16, 16, 24)


def sample(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    coverage = np.ones((2, *SHAPE), bool)
    coverage[1, :, :, :6] = False
    label = np.zeros(SHAPE, np.uint8)
    label[5:9, 5:9, 8:14] = 1
    label[0, 0, 0] = 255
    image = (rng.standard_normal((2, *SHAPE), np.float32) + np.float32(3) * (label == 1)) * coverage
    return Sample(image=image, coverage=coverage, label=label, available=np.array([True, True]))


def test_flips_move_everything_alike() -> None:
    start = sample()
    moved = apply_spatial(start, SpatialDraw(flips=(0, 2)))
    assert np.array_equal(moved.image, start.image[:, ::-1, :, ::-1])
    assert np.array_equal(moved.coverage, start.coverage[:, ::-1, :, ::-1])
    assert np.array_equal(moved.label, start.label[::-1, :, ::-1])


def test_a_quarter_turn_about_the_cord_axis() -> None:
    start = sample()
    label = np.zeros(SHAPE, np.uint8)
    label[3, 8, 10] = 1
    label[12, 8, 10] = 0
    start = Sample(image=start.image, coverage=start.coverage, label=label, available=start.available)
    turned = apply_spatial(start, SpatialDraw(angle=float(np.pi / 2))).label
    where = np.argwhere(turned == 1)
    assert len(where) == 1
    # 4.5 voxels from the axis stays 4.5 voxels from the axis, at the same height, a quarter turn on
    assert where[0][2] == 10
    assert abs(where[0][1] - 7.5) == pytest.approx(4.5)
    assert abs(where[0][0] - 7.5) == pytest.approx(0.5)


def test_what_is_moved_in_from_outside_is_no_background() -> None:
    smaller = apply_spatial(sample(), SpatialDraw(scale=0.5))
    outside = ~smaller.coverage.any(axis=0)
    assert outside.mean() > 0.8
    assert (smaller.label[outside] == IGNORE).all()
    assert (smaller.label[~outside] != IGNORE).mean() > 0.99


def test_scale_enlarges() -> None:
    start = sample()
    bigger = apply_spatial(start, SpatialDraw(scale=1.5))
    # 4 x 4 x 6 voxels = 96; 1.5 ** 3 of that, to the precision of nearest neighbours
    assert (bigger.label == 1).sum() == pytest.approx(96 * 1.5**3, rel=0.25)
    assert set(np.unique(bigger.label)) <= {0, 1, 255}


@given(seed=st.integers(0, 1000))
def test_labels_stay_labels_and_padding_stays_zero(seed: int) -> None:
    out = augment(sample(), np.random.default_rng(seed), AugmentConfig(spatial=1.0, noise=1.0, bias=1.0))
    assert set(np.unique(out.label)) <= {0, 1, 255}
    assert not out.image[~out.coverage].any()
    assert np.isfinite(out.image).all()
    assert out.image.dtype == np.float32


def test_replay_from_a_seed() -> None:
    one, two = (augment(sample(), np.random.default_rng(3), AugmentConfig()) for _ in range(2))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.label, two.label)


def test_no_probability_no_change() -> None:
    off = AugmentConfig(flip=0, spatial=0, gamma=0, blur=0, bias=0, low_resolution=0, noise=0)
    start = sample()
    assert draw_spatial(np.random.default_rng(0), off) == SpatialDraw()
    assert np.array_equal(augment(start, np.random.default_rng(0), off).image, start.image)


def test_intensity_is_drawn_for_each_sequence() -> None:
    rng = np.random.default_rng(0)
    first, second = (draw_intensity(rng, AugmentConfig(noise=1.0)) for _ in range(2))
    assert first.seed != second.seed


@pytest.mark.parametrize(
    "draw",
    [
        IntensityDraw(gamma=0.8),
        IntensityDraw(blur_mm=1.0),
        IntensityDraw(low_resolution=2.0),
        IntensityDraw(bias=0.3, seed=1),
        IntensityDraw(noise=0.2, seed=2),
        IntensityDraw(invert=True),
    ],
)
def test_each_change_changes_something_and_keeps_shape(draw: IntensityDraw) -> None:
    start = sample()
    out = apply_intensity(start.image[0], start.coverage[0], draw)
    assert out.shape == SHAPE
    assert not np.allclose(out, start.image[0])


def test_blur_lowers_the_variance() -> None:
    start = sample()
    out = apply_intensity(start.image[0], start.coverage[0], IntensityDraw(blur_mm=1.0))
    assert out.std() < 0.7 * start.image[0].std()


def test_bending_moves_images_and_labels_alike() -> None:
    start = sample()
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None, None], SHAPE)
    marked = Sample(
        image=np.stack([ramp, (start.label == 1).astype(np.float32)]),
        coverage=np.ones((2, *SHAPE), bool),
        label=start.label,
        available=np.array([True, True]),
    )
    bent = apply_spatial(marked, SpatialDraw(elastic_mm=0.5, seed=4))
    moved = np.abs(bent.image[0] - ramp) * 0.5
    # displacements of 0.5 mm at the nodes, less between them
    assert 0.1 < moved.mean() < 0.6
    assert moved.max() < 3
    # the image of the label, linearly interpolated, is above one half where the label went
    assert np.mean((bent.image[1] > 0.5) == (bent.label == 1)) > 0.99
    assert set(np.unique(bent.label)) <= {0, 1, 255}
    again = apply_spatial(marked, SpatialDraw(elastic_mm=0.5, seed=4))
    assert np.array_equal(again.image, bent.image)


def test_bending_leaves_missing_sequences_missing() -> None:
    start = sample()
    without = Sample(
        image=start.image * np.array([1, 0], np.float32)[:, None, None, None],
        coverage=start.coverage & np.array([True, False])[:, None, None, None],
        label=start.label,
        available=np.array([True, False]),
    )
    bent = apply_spatial(without, SpatialDraw(elastic_mm=1.0, seed=1))
    assert not bent.image[1].any()
    assert not bent.coverage[1].any()


@given(st.floats(0.5, 2.0))
def test_contrast_scales_small_values_and_keeps_the_largest(factor: float) -> None:
    values = np.array([-6, -0.1, 0, 0.1, 1, 3, 6], np.float32)[:, None, None]
    out = apply_intensity(values, np.ones(values.shape, bool), IntensityDraw(contrast=factor)).ravel()
    assert out[[0, 6]] == pytest.approx([-6, 6])
    assert out[3] == pytest.approx(0.1 * factor, rel=0.01)
    assert (np.diff(out) >= 0).all()
    if factor > 1:
        assert out[4] == pytest.approx(factor)


def test_new_draws_leave_old_ones_as_they_were() -> None:
    """Without bending and contrast, draws are those of configurations that do not know them."""
    old, new = AugmentConfig(), AugmentConfig(elastic=0.0, contrast=0.0, contrast_factor=(1.0, 3.0))
    a, b = np.random.default_rng(5), np.random.default_rng(5)
    assert [draw_spatial(a, old) for _ in range(9)] == [draw_spatial(b, new) for _ in range(9)]
    assert [draw_intensity(a, old) for _ in range(9)] == [draw_intensity(b, new) for _ in range(9)]
    assert a.random() == b.random()
    always = AugmentConfig(elastic=1.0, contrast=1.0)
    assert draw_spatial(a, always).elastic_mm > 0
    assert 0.6 <= draw_intensity(a, always).contrast <= 1.7


def test_a_level_that_drifts_is_a_straight_line_where_the_sequence_is_covered() -> None:
    image, coverage = np.zeros((2, 2, 5), np.float32), np.ones((2, 2, 5), bool)
    image[1, 1, 4], coverage[0, 0] = 5.5, False
    out = drifted(image, coverage, np.array([-1.0, 1.0]))
    assert out[0, 1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert out[1, 1, 4] == 6 and not out[0, 0].any() and out.dtype == np.float32  # clipped at 6


def test_levels_differ_between_sequences_and_have_the_stated_deviation() -> None:
    nothing = dict.fromkeys(
        ("flip", "spatial", "gamma", "blur", "bias", "low_resolution", "noise", "elastic", "contrast"), 0.0
    )
    config, rng = AugmentConfig(**nothing, level=0.7), np.random.default_rng(3)
    still = replace(sample(), image=np.zeros_like(sample().image))
    ends = []
    for _ in range(300):
        out = augment(still, rng, config).image
        assert not out[1, :, :, :6].any()
        ends.append((out[0, 0, 0, 0], out[0, 0, 0, -1], out[1, 0, 0, -1]))
    found = np.array(ends)
    assert found.std(axis=0) == pytest.approx([0.7] * 3, abs=0.09)
    assert np.abs(np.corrcoef(found.T)[np.triu_indices(3, 1)]).max() < 0.2
    assert np.array_equal(augment(still, rng, replace(config, level=0.0)).image, still.image)
