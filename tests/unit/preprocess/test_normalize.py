"""z-scores over covered voxels; contrast against the cord."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.preprocess.normalize import (
    CLIP,
    cord_level,
    cord_ratio,
    cord_score,
    eroded_core,
    is_constant,
    zscore,
)


def test_statistics_come_from_covered_voxels_only() -> None:
    volume = np.array([[[1.0, 3.0, 1000.0]]])
    out = zscore(volume, np.array([[[True, True, False]]]))
    assert out.tolist() == [[[-1.0, 1.0, 0.0]]]  # mean 2, standard deviation 1
    assert out.dtype == np.float32


@given(seed=st.integers(0, 99), gain=st.floats(0.01, 1e4), base=st.floats(-1e3, 1e3))
def test_gain_and_base_do_not_matter(seed: int, gain: float, base: float) -> None:
    rng = np.random.default_rng(seed)
    volume, coverage = rng.normal(size=(4, 5, 6)), rng.random((4, 5, 6)) < 0.5
    assert np.allclose(zscore(volume * gain + base, coverage), zscore(volume, coverage), atol=1e-4)


def test_nothing_to_normalise_gives_zeros() -> None:
    volume, nothing = np.ones((2, 2, 2)), np.zeros((2, 2, 2), bool)
    one = nothing.copy()
    one[0, 0, 0] = True
    for coverage in (nothing, one, ~nothing):
        assert is_constant(volume, coverage)
        assert not zscore(volume, coverage).any()


def cord_phantom(*, slices: int = 60) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A cord of level 100 and spread 2 in fluid of 500: image and cord share."""
    rng = np.random.default_rng(0)
    share = np.zeros((12, 12, slices), np.float32)
    share[3:9, 3:9] = 1
    image = np.where(share > 0, 100, 500) + rng.normal(0, 2, share.shape)
    return image.astype(np.float32), share


def test_the_cord_becomes_zero_and_its_spread_one_whatever_surrounds_it() -> None:
    image, share = cord_phantom()
    out = cord_score(image, np.ones(share.shape, bool), share, spacing_mm=0.5)
    inside = out[share > 0]
    assert abs(float(np.median(inside))) < 0.05
    assert 0.9 < float(inside.std()) < 1.1
    assert (out[share == 0] == CLIP).all()  # (500 - 100) / 2 is far beyond


def test_a_lesion_keeps_its_contrast_to_noise() -> None:
    image, share = cord_phantom(slices=200)
    image[4:6, 4:6, 25:35] += 6  # three times the spread of 2
    out = cord_score(image, np.ones(share.shape, bool), share, spacing_mm=0.5)
    assert 2.6 < float(out[4:6, 4:6, 25:35].mean()) < 3.3


def test_a_level_that_changes_along_the_cord_is_followed() -> None:
    image, share = cord_phantom(slices=400)
    tilted = image + np.linspace(0, 40, 400, dtype=np.float32)
    out = cord_score(tilted, np.ones(share.shape, bool), share, spacing_mm=0.5)
    along = np.array([np.median(out[3:9, 3:9, k]) for k in range(400)])
    assert np.abs(along[60:340]).max() < 1.0  # 40 / 2 = 20 units from end to end, were it not followed


def test_slices_without_cord_take_the_level_of_their_neighbours() -> None:
    image, share = cord_phantom()
    core = share > 0
    core[:, :, :20] = False
    level = cord_level(image, core, sigma_vox=4.0)
    assert np.isfinite(level).all()
    assert np.allclose(level, 100, atol=1)


@given(gain=st.floats(0.01, 1e3), base=st.floats(-1e3, 1e3))
def test_gain_and_base_do_not_matter_to_the_cord_score(gain: float, base: float) -> None:
    image, share = cord_phantom()
    coverage = np.ones(share.shape, bool)
    moved = (image.astype(np.float64) * gain + base).astype(np.float32)
    expected = cord_score(image, coverage, share, spacing_mm=0.5)
    assert np.allclose(cord_score(moved, coverage, share, spacing_mm=0.5), expected, atol=0.05)


def test_without_cord_or_contrast_in_it_the_window_gives_the_scale() -> None:
    image, share = cord_phantom()
    coverage = np.ones(share.shape, bool)
    expected = np.clip(zscore(image, coverage), -CLIP, CLIP)
    assert np.array_equal(cord_score(image, coverage, np.zeros_like(share), spacing_mm=0.5), expected)
    flat = np.where(share > 0, np.float32(100), image)
    assert np.array_equal(
        cord_score(flat, coverage, share, spacing_mm=0.5), np.clip(zscore(flat, coverage), -CLIP, CLIP)
    )


def test_what_is_not_covered_stays_zero() -> None:
    image, share = cord_phantom()
    coverage = np.ones(share.shape, bool)
    coverage[:, :, 40:] = False
    out = cord_score(image, coverage, share, spacing_mm=0.5)
    assert not out[:, :, 40:].any()
    assert not cord_score(image, np.zeros(share.shape, bool), share, spacing_mm=0.5).any()


def wide_phantom() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A cord of level 20 and spread 2 in dark surroundings of 0: image, share and a lesion in it."""
    rng = np.random.default_rng(0)
    share = np.zeros((28, 28, 120), np.float32)
    share[6:22, 6:22] = 1
    image = (20 * share + rng.normal(0, 2, share.shape)).astype(np.float32)
    lesion = np.zeros(share.shape, bool)
    lesion[12:16, 12:16, 50:70] = True
    return image + np.float32(6) * lesion, share, lesion


def test_a_mask_that_is_a_voxel_too_wide_leaves_a_lesion_its_contrast() -> None:
    """The mask's outermost ring is fluid, five times as far from the cord as its spread."""
    image, share, lesion = wide_phantom()
    wide = np.zeros_like(share)
    wide[5:23, 5:23] = 1
    covered = np.ones(share.shape, bool)
    right, wrong = (cord_ratio(image, covered, mask, spacing_mm=0.5)[lesion].mean() for mask in (share, wide))
    assert 2.6 < right < 3.3
    assert abs(wrong / right - 1) < 0.02
    old = [cord_score(image, covered, mask, spacing_mm=0.5)[lesion].mean() for mask in (share, wide)]
    assert old[1] < 0.85 * old[0]


def test_where_the_coil_sees_less_contrasts_stay() -> None:
    image, share, _ = wide_phantom()
    share, image = np.tile(share, (1, 1, 3)), np.tile(image, (1, 1, 3))
    gain = np.geomspace(1, 0.25, image.shape[2]).astype(np.float32)
    covered = np.ones(share.shape, bool)
    ratio, score = (rule(image * gain, covered, share, spacing_mm=0.5) for rule in (cord_ratio, cord_score))
    inner = slice(8, 20), slice(8, 20)
    ends = [
        [float(out[(*inner, part)].std()) for part in (slice(40, 90), slice(270, 320))]
        for out in (ratio, score)
    ]
    assert ends[0][1] == pytest.approx(ends[0][0], rel=0.1)
    assert ends[1][1] < 0.5 * ends[1][0]
    assert abs(float(np.median(ratio[share > 0]))) < 0.15


def test_a_ratio_is_of_signal_that_has_a_zero_and_gain_does_not_matter() -> None:
    image, share, _ = wide_phantom()
    covered = np.ones(share.shape, bool)
    once, more = (cord_ratio(image * np.float32(gain), covered, share, spacing_mm=0.5) for gain in (1, 300))
    assert np.allclose(once, more, atol=1e-3)
    # of values about 0 a ratio says nothing: the level is subtracted
    centred = cord_ratio(image - np.float32(20), covered, share, spacing_mm=0.5)
    assert np.isfinite(centred).all()
    core = eroded_core(share, covered, spacing_mm=0.5)
    assert np.median(np.abs(centred[core])) * 1.4826 == pytest.approx(1, abs=0.05)


def test_a_cord_that_is_too_thin_keeps_its_edge() -> None:
    share = np.zeros((12, 12, 30), np.float32)
    share[4:8, 4:8] = 1
    covered = np.ones(share.shape, bool)
    assert np.array_equal(eroded_core(share, covered, spacing_mm=0.5), share > 0)
    share[2:10, 2:10] = 1
    inner = eroded_core(share, covered, spacing_mm=0.5)
    assert inner[4:8, 4:8].all() and int(inner[..., 0].sum()) == 16
    covered[..., 10:] = False
    assert not eroded_core(share, covered, spacing_mm=0.5)[..., 10:].any()
    assert not eroded_core(np.zeros_like(share), covered, spacing_mm=0.5).any()


def test_a_ratio_without_cord_or_contrast_in_it_is_the_score_of_the_window() -> None:
    image, share, _ = wide_phantom()
    covered = np.ones(share.shape, bool)
    expected = np.clip(zscore(image, covered), -CLIP, CLIP)
    assert np.array_equal(cord_ratio(image, covered, np.zeros_like(share), spacing_mm=0.5), expected)
    flat = np.where(share > 0, np.float32(20), image)
    expected = np.clip(zscore(flat, covered), -CLIP, CLIP)
    assert np.array_equal(cord_ratio(flat, covered, share, spacing_mm=0.5), expected)
    covered[..., 100:] = False
    assert not cord_ratio(image, covered, share, spacing_mm=0.5)[..., 100:].any()
