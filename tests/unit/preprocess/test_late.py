"""Late fusion: means over what covers, slabs and seams, and no intensity factors on maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import prepared_sessions as sessions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import GeometryError
from bids_scseg.preprocess import prepare
from bids_scseg.preprocess.late import fuse_maps, prepared_map, weighted_mean

SHAPE = (2, 2, 1)


def volume(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(SHAPE)


def test_by_hand():
    # Voxels: both cover (0.8 and 0.2), the first alone, the second alone, none.
    one = volume(0.8, 0.6, 0.9, 0.9), volume(1, 1, 0, 0).astype(bool)
    two = volume(0.2, 1.0, 0.3, 0.9), volume(1, 0, 1, 0).astype(bool)
    np.testing.assert_allclose(weighted_mean([one, two], shape=SHAPE), volume(0.5, 0.6, 0.3, 0.0))


def test_graded_weights():
    # (0.9 * 1 + 0.3 * 0.5) / 1.5 = 0.7
    pairs = [(volume(*[0.9] * 4), volume(*[1] * 4)), (volume(*[0.3] * 4), volume(*[0.5] * 4))]
    np.testing.assert_allclose(weighted_mean(pairs, shape=SHAPE), 0.7, rtol=1e-6)


def test_nothing_is_zero():
    assert not weighted_mean([], shape=SHAPE).any()


def test_what_is_not_covered_does_not_matter_whatever_it_holds():
    nothing = np.full(SHAPE, np.nan, np.float32), np.zeros(SHAPE, bool)
    one = volume(0.1, 0.2, 0.3, 0.4), np.ones(SHAPE, bool)
    np.testing.assert_array_equal(weighted_mean([nothing, one], shape=SHAPE), one[0])


values = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)
covers = st.lists(st.booleans(), min_size=4, max_size=4)


@given(st.lists(st.tuples(values, covers), min_size=1, max_size=4), st.randoms())
def test_within_the_range_of_what_covers_in_any_order(drawn, random):
    pairs = [(volume(*held), volume(*there).astype(bool)) for held, there in drawn]
    fused = weighted_mean(pairs, shape=SHAPE)
    low = np.min([np.where(there, held, np.inf) for held, there in pairs], axis=0)
    high = np.max([np.where(there, held, -np.inf) for held, there in pairs], axis=0)
    covered = np.any([there for _, there in pairs], axis=0)
    assert (fused[covered] >= low[covered] - 1e-6).all()
    assert (fused[covered] <= high[covered] + 1e-6).all()
    assert not fused[~covered].any()
    random.shuffle(pairs)
    np.testing.assert_allclose(weighted_mean(pairs, shape=SHAPE), fused, atol=1e-6)


@pytest.fixture(scope="module")
def case():
    images, cords = sessions.session()
    return prepare.prepare_session(images, cords, sessions.RECIPE, register=False)[0]


def maps(**levels: float) -> dict[str, list[prepare.NativeImage]]:
    """Constant maps on the session's images."""
    grids = {"low": sessions.LOWER, "up": sessions.UPPER, "ax": sessions.AXIAL}
    keys = {"low": "Sag", "up": "Sag", "ax": "Ax"}
    out: dict[str, list[prepare.NativeImage]] = {}
    for name, level in levels.items():
        made = np.full(grids[name].shape, level, np.float32), grids[name], name
        out.setdefault(keys[name], []).append(made)
    return out


def test_each_voxel_is_the_mean_of_the_sequences_that_cover_it(case):
    fused = fuse_maps(case, maps(low=0.2, up=0.2, ax=0.8))
    sag, ax = case.coverage[0], case.coverage[1]
    assert (sag & ax).any()
    assert (sag & ~ax).any()
    np.testing.assert_allclose(fused[sag & ax], 0.5, atol=1e-6)
    np.testing.assert_allclose(fused[sag & ~ax], 0.2, atol=1e-6)
    assert not fused[~sag & ~ax].any()


def test_slabs_meet_at_their_seam_and_keep_their_own_values(case):
    fused = prepared_map(case.geometry, maps(up=0.9, low=0.1)["Sag"], key="Sag")
    seam = case.geometry.slabs_of("Sag")[0].serves[0]
    above = case.coverage[0] & (case.geometry.s_mm > seam + 0.5)
    below = case.coverage[0] & (case.geometry.s_mm < seam - 0.5)
    assert above.any()
    assert below.any()
    np.testing.assert_allclose(fused[above], 0.9, atol=1e-6)
    np.testing.assert_allclose(fused[below], 0.1, atol=1e-6)


def test_intensity_factors_of_slabs_are_not_for_maps(case):
    scaled = replace(case.geometry, slabs=tuple(replace(slab, scale=2.5) for slab in case.geometry.slabs))
    fused = fuse_maps(replace(case, geometry=scaled), maps(low=0.4, up=0.4, ax=0.4))
    assert fused.max() == pytest.approx(0.4)


def test_a_sequence_that_the_case_does_not_use_has_no_say(case):
    blank = replace(case, available=(True, False, False))
    fused = fuse_maps(blank, maps(low=0.2, up=0.2, ax=1.0))
    assert fused.max() == pytest.approx(0.2)


def test_a_slab_without_its_map_is_refused(case):
    with pytest.raises(GeometryError, match="no image for slab 1 of Sag"):
        fuse_maps(case, maps(up=0.2, ax=0.2))
    with pytest.raises(GeometryError, match="no geometry"):
        fuse_maps(replace(case, geometry=None), maps(up=0.2))
