"""z-scores over covered voxels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.preprocess.normalize import is_constant, zscore


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
