"""Grey matter and surroundings of the cord of made-up contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.errors import DataError
from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.training import appearance
from bids_scseg.training.appearance import add_grey, change_surroundings, darken_fluid, draw_horns
from bids_scseg.training.config import PaintConfig, config_from_mapping
from bids_scseg.training.sample import Sample

SIZE = (48, 48, 64)
NAMES = ("T2StarAx", "MP2RAGE")
FINE = [(0.5, 0.5, 0.5)] * 2


def cord(*, end: int = 64) -> npt.NDArray[np.float32]:
    """A cylinder of 11 mm, off the middle, that ends at a slice."""
    i, j, k = np.ogrid[:48, :48, :64]
    radius = np.hypot(i - 27.0, j - 20.0) * 0.5
    return np.asarray(np.clip(5.5 - radius, 0, 1) * (k < end), np.float32)


def patch() -> Sample:
    rng = np.random.default_rng(3)
    coverage = np.ones((2, *SIZE), bool)
    coverage[1, :, :, 40:] = False
    label = np.zeros(SIZE, np.uint8)
    label[25:28, 18:22, 4:9] = 1
    image = rng.standard_normal((2, *SIZE)).astype(np.float32) * coverage
    image = np.clip(image + np.where(cord() < 0.5, 3, 0) * coverage, -CLIP, CLIP).astype(np.float32)
    return Sample(image=image, coverage=coverage, label=label, available=np.array([True, True]))


def greyed(seed: int, sample: Sample | None = None, share: float = 1.0) -> Sample:
    rng = np.random.default_rng(seed)
    return add_grey(sample or patch(), cord(), rng, config=grey(share), sequences=NAMES, spacings=FINE)


def grey(share: float, *, contrast: tuple[float, float] = (0.3, 3.0), front: float = 0.0) -> PaintConfig:
    return PaintConfig(grey=share, grey_contrast=contrast, grey_front=front)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_horns_lie_in_the_cord_on_both_sides_and_leave_white_matter(seed: int) -> None:
    share = draw_horns(np.random.default_rng(seed), cord())
    assert share.dtype == np.float32 and share.min() >= 0
    assert not share[cord() == 0].any()
    left, right = share[:27].sum(), share[28:].sum()
    assert left == pytest.approx(right, rel=0.05)  # the cord's middle is at 27, not the patch's
    part = (share > 0.3).sum() / (cord() > 0.5).sum()
    assert 0.01 < part < 0.75


def test_horns_change_slowly_along_the_cord_and_end_with_it() -> None:
    share = draw_horns(np.random.default_rng(1), cord(end=30))
    assert not share[..., 30:].any()
    steps = np.abs(np.diff(share[..., :30], axis=2)).max()
    assert 0 < steps < 0.5


def test_anterior_horns_alone_are_stronger_by_their_option() -> None:
    plain = draw_horns(np.random.default_rng(4), cord())
    strong = draw_horns(np.random.default_rng(4), cord(), front=1.5)
    ratio, seen = strong / np.maximum(plain, 1e-6), plain > 0.3
    ahead, behind = ratio[:, 24:][seen[:, 24:]], ratio[:, :16][seen[:, :16]]  # the cord's middle is at 20
    assert len(ahead) > 50 and len(behind) > 50
    assert 1.1 < np.median(ahead) <= 2.5
    assert np.median(behind) == pytest.approx(1, abs=0.1)


def test_a_remnant_of_cord_gets_no_horns() -> None:
    small = np.zeros(SIZE, np.float32)
    small[20:24, 20:24] = 1  # 4 mm²
    assert not draw_horns(np.random.default_rng(0), small).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_grey_matter_keeps_the_cords_mean_and_spread_and_all_labels(seed: int) -> None:
    before, after = patch(), greyed(seed)
    assert np.array_equal(after.label, before.label)
    assert np.array_equal(after.image[~before.coverage], before.image[~before.coverage])
    assert np.abs(after.image).max() <= CLIP
    for channel in range(2):
        pure = (cord() >= appearance.PURE) & before.coverage[channel] & (before.label == 0)
        old, new = before.image[channel][pure], after.image[channel][pure]
        assert new.mean() == pytest.approx(old.mean(), abs=0.05)
        assert new.std() == pytest.approx(old.std(), rel=0.05)


def test_horns_are_bright_where_lesions_are_bright_and_dark_where_they_are_dark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(appearance, "REVERSED", 0.0)
    monkeypatch.setattr(appearance, "SHOWN", 1.0)
    share, rng = draw_horns(_after_the_first(2), cord()), np.random.default_rng(2)
    strong = grey(1.0, contrast=(2.5, 3.0))
    after = add_grey(patch(), cord(), rng, config=strong, sequences=NAMES, spacings=FINE)
    inside = (share > 0.7) & patch().coverage[1]
    outside = (share < 0.05) & (cord() > 0.95) & patch().coverage[1]
    assert after.image[0][inside].mean() > after.image[0][outside].mean() + 1
    assert after.image[1][inside].mean() < after.image[1][outside].mean() - 1


def _after_the_first(seed: int) -> np.random.Generator:
    rng = np.random.default_rng(seed)
    rng.random()
    return rng


def test_nothing_happens_by_default_or_without_room() -> None:
    before = patch()
    assert greyed(0, before, share=0.0) is before
    rng = np.random.default_rng(0)
    empty = np.zeros(SIZE, np.float32)
    assert add_grey(before, empty, rng, config=grey(1), sequences=NAMES, spacings=FINE) is before
    assert change_surroundings(before, cord(), rng, probability=0.0) is before


def test_a_sequence_of_unknown_sign_is_refused() -> None:
    names = ("T2StarAx", "T1w")
    with pytest.raises(DataError, match="T1w"):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            add_grey(patch(), cord(), rng, config=grey(1), sequences=names, spacings=FINE)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_surroundings_change_by_one_factor_about_the_cords_mean(seed: int) -> None:
    before = patch()
    after = change_surroundings(before, cord(), np.random.default_rng(seed), probability=1)
    assert np.allclose(after.image[:, cord() == 1], before.image[:, cord() == 1])
    for channel in range(2):
        small = (cord() == 0) & (np.abs(before.image[channel]) < 3) & (np.abs(before.image[channel]) > 0.5)
        factors = after.image[channel][small] / before.image[channel][small]
        assert np.ptp(factors) < 1e-4
        assert 0.149 < factors.mean() < 1.501


def test_missing_sequences_stay_empty() -> None:
    sample = patch()
    image = sample.image.copy()
    image[1] = 0
    alone = replace(sample, image=image, available=np.array([True, False]))
    assert not greyed(4, alone).image[1].any()


def test_the_configuration_checks_the_shares() -> None:
    config = config_from_mapping(
        {"name": "n", "recipe": "cord-lesion", "paint": {"grey": 0.4, "surroundings": 0.3}}, file="x"
    )
    assert (config.paint.grey, config.paint.surroundings) == (0.4, 0.3)
    with pytest.raises(DataError, match=r"paint\.grey"):
        config_from_mapping({"name": "n", "recipe": "cord-lesion", "paint": {"grey": 1.5}}, file="x")


def test_a_cord_that_ends_in_remnants_raises_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    ragged = cord(end=40)
    ragged[45, 45, 41] = 1  # a voxel of cord far from where a fit would put it
    assert draw_horns(np.random.default_rng(0), ragged).any()
    assert not recwarn.list


def test_fluid_gets_as_dark_as_the_cord_in_axial_scans_only() -> None:
    start = patch()
    outside = cord() == 0
    means = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        after = darken_fluid(start, cord(), rng, probability=1.0, sequences=NAMES)
        assert np.array_equal(after.image[1], start.image[1])  # MP2RAGE
        assert np.allclose(after.image[0][cord() == 1], start.image[0][cord() == 1])
        assert np.abs(after.image).max() <= CLIP
        means.append(float(after.image[0][outside].mean()))
    before = float(start.image[0][outside].mean())
    assert before > 2.5
    assert -before <= min(means) < -0.5 * before
    assert max(means) < 0.16 * before


def test_fluid_stays_bright_without_the_option() -> None:
    start, rng = patch(), np.random.default_rng(0)
    assert darken_fluid(start, cord(), rng, probability=0.0, sequences=NAMES) is start
    assert rng.random() == np.random.default_rng(0).random()
    some = [darken_fluid(start, cord(), rng, probability=0.3, sequences=NAMES) for _ in range(60)]
    changed = np.mean([not np.array_equal(one.image, start.image) for one in some])
    assert 0.1 < changed < 0.5
