"""What a scanner does to a patch, and the normalisation after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from bids_scseg.errors import DataError
from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.training.acquisition import (
    RATIO,
    ScanDraw,
    Scene,
    draw_ratio,
    draw_scan,
    native_noise,
    renormalised,
    scan,
)
from bids_scseg.training.augment import augment
from bids_scseg.training.cases import Made
from bids_scseg.training.config import AugmentConfig, PaintConfig, SamplingConfig, config_from_mapping
from bids_scseg.training.dataset import PreparedCases
from bids_scseg.training.sample import Sample
from tests.small_cases import make_case

SIZE = (48, 48, 96)
ALL = np.ones(SIZE, bool)
FINE, AXIAL, SAGITTAL = (0.5, 0.5, 0.5), (0.5, 0.5, 5.0), (3.0, 0.7, 0.7)
OFF = AugmentConfig(flip=0, spatial=0, gamma=0, blur=0, bias=0, low_resolution=0, noise=0)
Floats = npt.NDArray[np.float32]


def cord() -> Floats:
    i, j, _ = np.ogrid[:48, :48, :96]
    radius = np.hypot(i - 23.5, j - 23.5) * 0.5
    return np.broadcast_to(np.clip(5.5 - radius, 0, 1), SIZE).astype(np.float32)


def cordlike(seed: int = 3) -> Floats:
    """A cord of level 0 and spread 1 in fluid that is clipped."""
    noise = np.random.default_rng(seed).standard_normal(SIZE)
    return np.where(cord() < 0.5, CLIP, np.clip(noise, -4, 4)).astype(np.float32)


def middle(out: Floats) -> Floats:
    """The cord's inside, (voxels, k)."""
    return out[cord()[..., 0] > 0.95]


def robust(values: Floats) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


@pytest.mark.parametrize("normalize", ["cord", "cord-ratio"])
@pytest.mark.parametrize(("shift", "factor"), [(1.0, 0.6), (-1.0, 1.7)])
def test_level_and_spread_become_what_they_are_at_inference(normalize, shift, factor) -> None:
    scene = Scene(cord=cord(), spacings=[FINE], normalize=normalize)
    out = renormalised(cordlike() * np.float32(factor) + np.float32(shift), ALL, scene, ratio=12.0)
    assert abs(float(np.median(middle(out)))) < 0.05
    assert robust(middle(out)) == pytest.approx(1, rel=0.05)


def test_painted_lesions_enter_the_spread() -> None:
    """A third of the cord brighter by 3: the same contrast is worth less, as in a patient."""
    start = cordlike()
    start[:22] += np.float32(3) * (cord()[:22] > 0.5)
    out = renormalised(start, ALL, Scene(cord=cord(), spacings=[FINE]), ratio=10.0)
    contrast = float(np.median(out[18:22, 20:28])) - float(np.median(out[24:30, 20:28]))
    assert 1.5 < contrast < 2.7


def test_a_patch_with_next_to_no_cord_stays_as_it_is() -> None:
    scene = Scene(cord=np.zeros(SIZE, np.float32), spacings=[FINE])
    assert np.array_equal(renormalised(cordlike(), ALL, scene, ratio=10.0), cordlike())


def test_the_field_moves_the_cord_by_its_level() -> None:
    """x·f + r·(f − 1) by hand: 12 % across 24 mm at a level of 10 spreads is 1.2 spreads."""
    flat = np.zeros(SIZE, np.float32)
    out = scan(flat, ALL, ScanDraw(ratio=10.0, gradient=0.12), spacing=FINE, normalize="cord")
    assert float(out[47, 20, 5] - out[0, 20, 5]) == pytest.approx(1.2 * 23.5 / 24, abs=1e-3)
    assert float(out[23:25].mean()) == pytest.approx(0, abs=1e-5)
    assert float(np.ptp(out[20])) < 1e-5
    one = scan(flat + 1, ALL, ScanDraw(ratio=10.0, gradient=0.12), spacing=FINE, normalize="cord")
    assert float(one[47, 0, 0]) == pytest.approx(11 * (1 + 0.12 * 11.75 / 24) - 10, abs=1e-3)


@pytest.mark.parametrize(("spacing", "axis"), [(AXIAL, 2), (SAGITTAL, 0)])
def test_native_slices_differ_in_brightness(spacing, axis) -> None:
    draw = ScanDraw(ratio=10.0, slice_sd=0.04, seed=1)
    out = scan(np.zeros(SIZE, np.float32), ALL, draw, spacing=spacing, normalize="cord")
    others = tuple(n for n in range(3) if n != axis)
    profile = out.mean(axis=others)
    assert out.std(axis=others).max() < 1e-4  # alike within a slice of the grid
    assert 0.1 < profile.std() < 0.8  # 10 · 0.04 less what interpolation takes
    step = round(spacing[axis] / 0.5)
    bends = np.abs(np.diff(profile, 2)) > 1e-4
    assert bends.sum() <= 2 * (profile.size // step + 1)  # straight between the native slices' centres


def test_volumes_have_no_slices() -> None:
    draw = ScanDraw(ratio=10.0, slice_sd=0.04, seed=1)
    out = scan(np.zeros(SIZE, np.float32), ALL, draw, spacing=(1.0, 1.0, 1.0), normalize="cord")
    assert not out.any()


def test_where_the_coil_sees_less_one_rule_has_less_contrast_and_the_other_more_noise() -> None:
    draw = ScanDraw(ratio=10.0, fall_per_mm=float(np.log(4) / 48), noise=0.3, seed=2)
    lesion = np.full(SIZE, 2.0, np.float32)
    subtracted, divided = (
        scan(lesion, ALL, draw, spacing=FINE, normalize=rule) for rule in ("cord", "cord-ratio")
    )
    ends = slice(0, 6), slice(90, 96)
    assert [float(subtracted[..., end].mean()) for end in ends] == pytest.approx([1.93, 0.52], abs=0.03)
    assert [float(subtracted[..., end].std()) for end in ends] == pytest.approx([0.3, 0.3], abs=0.08)
    assert [float(divided[..., end].mean()) for end in ends] == pytest.approx([2, 2], abs=0.02)
    assert [float(divided[..., end].std()) for end in ends] == pytest.approx([0.31, 1.16], rel=0.06)
    upwards = scan(lesion, ALL, replace(draw, fall_per_mm=-draw.fall_per_mm), spacing=FINE, normalize="cord")
    assert float(upwards[..., 95].mean()) > float(upwards[..., 0].mean())


def test_noise_is_alike_within_a_native_voxel() -> None:
    rng = np.random.default_rng(0)
    thick, white = native_noise(rng, SIZE, AXIAL), native_noise(rng, SIZE, FINE)
    assert thick.std() == pytest.approx(1) and white.std() == pytest.approx(1)

    def along(noise: Floats, axis: int) -> float:
        one, two = np.moveaxis(noise, axis, 0)[:-1], np.moveaxis(noise, axis, 0)[1:]
        return float(np.corrcoef(one.ravel(), two.ravel())[0, 1])

    assert along(thick, 2) > 0.95
    assert abs(along(thick, 0)) < 0.1
    assert abs(along(white, 2)) < 0.03


def test_what_is_not_covered_stays_zero() -> None:
    covered = ALL.copy()
    covered[..., 50:] = False
    draw = ScanDraw(ratio=10.0, gradient=0.1, slice_sd=0.02, fall_per_mm=0.01, noise=0.2)
    assert not scan(cordlike() * covered, covered, draw, spacing=AXIAL, normalize="cord")[..., 50:].any()


def test_draws_lie_within_their_ranges_and_nothing_is_drawn_unasked() -> None:
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    assert all(draw_scan(rng, AugmentConfig()) is None for _ in range(9))
    assert rng.random() == other.random()
    always = AugmentConfig(physical=1.0)
    draws = [draw_scan(rng, always) for _ in range(200)]
    assert all(draw is not None for draw in draws)
    ratios = [draw_ratio(rng) for _ in range(300)]
    assert RATIO[0] <= min(ratios) < 6 and 14 < max(ratios) <= RATIO[1]
    assert max(draw.gradient for draw in draws) <= 0.12
    assert max(abs(draw.fall_per_mm) for draw in draws) <= np.log(4) / 50
    assert {np.sign(draw.fall_per_mm) for draw in draws} == {-1.0, 1.0}
    assert 0.03 < max(draw.slice_sd for draw in draws) <= 0.04
    uneven = replace(always, slice_sd=0.1)
    assert max(draw_scan(rng, uneven).slice_sd for _ in range(50)) > 0.06
    half = [draw_scan(rng, AugmentConfig(physical=0.5)) is None for _ in range(200)]
    assert 0.35 < np.mean(half) < 0.65


def shown() -> Sample:
    image = np.stack([cordlike(1), np.zeros(SIZE, np.float32)])
    coverage = np.stack([ALL, ~ALL])
    label = np.zeros(SIZE, np.uint8)
    return Sample(image=image, coverage=coverage, label=label, available=np.array([True, False]))


@pytest.mark.parametrize("normalize", ["cord", "cord-ratio"])
def test_every_change_ends_normalised_and_the_factor_comes_last(normalize) -> None:
    scene = Scene(cord=cord(), spacings=[AXIAL, AXIAL], normalize=normalize)
    strong = AugmentConfig(
        flip=0, spatial=0, gamma=1.0, blur=0, bias=0, low_resolution=0, noise=1.0, physical=1.0,
        renormalise=True,
    )  # fmt: skip
    for seed in range(4):
        out = augment(shown(), np.random.default_rng(seed), strong, scene=scene)
        inside = middle(out.image[0])
        assert abs(float(np.median(inside))) < 0.1
        assert robust(inside) == pytest.approx(1, rel=0.15)
        assert np.abs(out.image).max() <= CLIP
        assert not out.image[1].any()
        fixed = replace(strong, contrast=1.0, contrast_factor=(1.4, 1.4))
        more = augment(shown(), np.random.default_rng(seed), fixed, scene=scene)
        assert robust(middle(more.image[0])) == pytest.approx(1.4, rel=0.15)


def test_fluid_that_was_clipped_stays_bright() -> None:
    noisy = replace(shown(), image=shown().image * np.where(cord() > 0.5, 3, 1).astype(np.float32))
    scene = Scene(cord=cord(), spacings=[FINE, FINE])
    out = augment(noisy, np.random.default_rng(0), replace(OFF, renormalise=True), scene=scene)
    assert (out.image[0][cord() < 0.5] == CLIP).all()
    assert robust(middle(out.image[0])) == pytest.approx(1, rel=0.05)


def test_the_changes_need_the_cord() -> None:
    with pytest.raises(ValueError, match="cord"):
        augment(shown(), np.random.default_rng(0), replace(OFF, renormalise=True))


def test_a_source_takes_the_rule_of_its_cases() -> None:
    share = np.zeros(make_case().label.shape, np.float16)
    share[2:14, 2:14] = 1
    sampling = SamplingConfig(patch_vox=(16, 16, 32))

    def source(normalize: str, config: AugmentConfig, **changes: object) -> PreparedCases:
        case = make_case(cord=share, made=Made(rules={"normalize": normalize}), **changes)
        return PreparedCases(cases=[case], sampling=sampling, augmentation=config)

    taken = replace(OFF, renormalise=True, physical=1.0, noise_sd=(0.2, 0.2))
    one, two = (source(rule, taken).sample(0).image for rule in ("cord", "cord-ratio"))
    assert not np.allclose(one, two, atol=0.05)
    with pytest.raises(DataError, match="prepared with normalize 'coverage'"):
        source("coverage", taken).sample(0)
    assert source("coverage", OFF).sample(0).image.any()  # such cases are trained with as ever
    with pytest.raises(DataError, match=r"cord_share\.npy"):
        replace(source("cord", taken), cases=[make_case()]).sample(0)


def test_defaults_change_nothing() -> None:
    config = config_from_mapping({"name": "x", "recipe": "cord-lesion"}, file="x.toml")
    assert (config.augment.renormalise, config.augment.physical) == (False, 0.0)
    assert config.paint == PaintConfig(contrast=(2.0, 9.0), least_contrast=0.7, columns=0.0, dark_fluid=0.0)
    start = shown()
    scene = Scene(cord=cord(), spacings=[FINE, FINE])
    with_scene, without = (
        augment(start, np.random.default_rng(2), AugmentConfig(), scene=one) for one in (scene, None)
    )
    assert np.array_equal(with_scene.image, without.image)


@pytest.mark.parametrize(
    "table",
    [
        {"augment": {"physical": 1.5}},
        {"augment": {"slice_sd": 1.0}},
        {"augment": {"renormalise": 1}},
        {"paint": {"contrast": [3.0, 2.0]}},
        {"paint": {"contrast": [0.0, 2.0]}},
        {"paint": {"least_contrast": -0.1}},
        {"paint": {"columns": 1.1}},
        {"paint": {"dark_fluid": -0.1}},
    ],
)
def test_values_that_cannot_be_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(DataError):
        config_from_mapping({"name": "x", "recipe": "cord-lesion", **table}, file="x.toml")
