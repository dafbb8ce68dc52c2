"""Noise of volumes: surfaces by hand, verdicts, and scans of one lesion that differ by where slices fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.measure.volume_noise import (
    BEYOND_NOISE_FROM,
    BOUNDARY_SD_MM,
    Change,
    spheroid_surface,
    volume_change,
    volume_sd,
)

BALL = 4 / 3 * np.pi


def scanned(rng, half_mm, *, slice_mm=3.0, step=0.5):
    """Volume and length of an ellipsoid as a sagittal scan and a threshold of one half show it."""
    shift = rng.uniform(0, 1, 3) * (slice_mm, step, step)
    sides = [int(2 * (half + 4) / step) for half in half_mm]
    sides[0] = int(np.ceil(2 * (half_mm[0] + 2 * slice_mm) / slice_mm)) * round(slice_mm / step)
    axes = [(np.arange(n) - n / 2) * step + move for n, move in zip(sides, shift, strict=True)]
    right, front, up = np.meshgrid(*axes, indexing="ij")
    inside = (right / half_mm[0]) ** 2 + (front / half_mm[1]) ** 2 + (up / half_mm[2]) ** 2 <= 1
    slices = inside.reshape(-1, round(slice_mm / step), *inside.shape[1:]).mean(axis=1)
    middle = axes[0].reshape(slices.shape[0], -1).mean(axis=1)
    at = np.interp(axes[0], middle, np.arange(len(middle)))
    low = np.minimum(at.astype(int), len(middle) - 2)
    part = (at - low)[:, None, None]
    seen = (1 - part) * slices[low] + part * slices[low + 1] >= 0.5
    return float(seen.sum()) * step**3, float(seen.any(axis=(0, 1)).sum()) * step


def test_surfaces_by_hand():
    # A ball of radius 1: 4 pi, with its length known or not.
    assert spheroid_surface(BALL, 2.0) == pytest.approx(4 * np.pi)
    assert spheroid_surface(BALL, np.nan) == pytest.approx(4 * np.pi)
    # A cigar with half-axes 1, 1, 2: e = sqrt(3)/2, 2 pi (1 + 2 / e * asin e) = 21.478.
    assert spheroid_surface(2 * BALL, 4.0) == pytest.approx(21.478, abs=1e-3)
    # A lens with half-axes 2, 2, 1: e = sqrt(3)/2, 8 pi (1 + (1 - e^2) / e * atanh e) = 34.688.
    assert spheroid_surface(4 * BALL, 2.0) == pytest.approx(34.688, abs=1e-3)
    assert spheroid_surface(0.0, 0.0) == 0


@given(volume=st.floats(1, 2000), length=st.floats(0.5, 60))
def test_no_shape_has_less_surface_than_a_ball(volume, length):
    assert spheroid_surface(volume, length) >= spheroid_surface(volume, np.nan) * (1 - 1e-6)


def test_noise_is_surface_times_displacement():
    assert volume_sd(BALL, 2.0) == pytest.approx(4 * np.pi * BOUNDARY_SD_MM)
    change = volume_change([(BALL, 2.0)], [(BALL, 2.0), (BALL, 2.0)])
    # Errors of one session add up, those of two are independent: 4 pi sd sqrt(1 + 2^2).
    assert change.sd_mm3 == pytest.approx(4 * np.pi * BOUNDARY_SD_MM * np.sqrt(5))
    assert change.mm3 == pytest.approx(BALL)


def test_verdicts_at_the_limit():
    assert Change(mm3=1.95, sd_mm3=1.0).verdict == "stable"
    assert Change(mm3=1.97, sd_mm3=1.0).verdict == "enlarged"
    assert Change(mm3=-1.97, sd_mm3=1.0).verdict == "shrunken"
    assert Change(mm3=2.0, sd_mm3=1.0).interval == (2 - BEYOND_NOISE_FROM, 2 + BEYOND_NOISE_FROM)


def test_nothing_before_and_after_is_no_change():
    change = volume_change([], [])
    assert (change.mm3, change.sd_mm3, change.z, change.verdict) == (0.0, 0.0, 0.0, "stable")


def test_one_lesion_scanned_twice_is_stable():
    """Slices fall elsewhere each time: at least 95 % of 300 lesions as wide as a slice must stay stable."""
    rng = np.random.default_rng(5)
    z = []
    for _ in range(300):
        half = rng.uniform((1.5, 1.5, 2.5), (3.0, 3.0, 10.0))
        z.append(volume_change([scanned(rng, half)], [scanned(rng, half)]).z)
    assert np.mean(np.abs(z) < BEYOND_NOISE_FROM) >= 0.95


def test_a_lesion_of_twice_the_volume_is_enlarged():
    rng = np.random.default_rng(6)
    verdicts = []
    for _ in range(60):
        half = rng.uniform((2.2, 2.2, 3.0), (3.0, 3.0, 6.0))  # 60 to 230 mm³
        larger = half * np.cbrt(2)
        verdicts.append(volume_change([scanned(rng, half)], [scanned(rng, larger)]).verdict)
    assert verdicts.count("enlarged") >= 0.9 * len(verdicts)
    assert "shrunken" not in verdicts


def test_a_percentage_is_no_measure():
    """A quarter more of a small lesion is noise, of a large one it is not."""
    small, large = 20.0, 6000.0
    assert volume_change([(small, np.nan)], [(1.25 * small, np.nan)]).verdict == "stable"
    assert volume_change([(large, np.nan)], [(1.25 * large, np.nan)]).verdict == "enlarged"
