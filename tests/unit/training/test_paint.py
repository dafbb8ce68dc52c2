"""Lesions painted into patches, and sequences shown in each other's place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.errors import DataError
from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.training.cases import load_case
from bids_scseg.training.config import AugmentConfig, PaintConfig, SamplingConfig, config_from_mapping
from bids_scseg.training.dataset import PreparedCases
from bids_scseg.training.paint import average, column_place, draw_shape, draw_wide, exchange, fill, paint
from bids_scseg.training.sample import IGNORE, Sample
from tests.small_cases import make_case, save

SIZE = (48, 48, 64)
NAMES = ("T2Sag", "STIR", "T1Sag")
FINE = [(0.5, 0.5, 0.5)] * 3
ALWAYS = PaintConfig(probability=1.0, lesions=(1, 3))


def cord() -> npt.NDArray[np.float32]:
    i, j, _ = np.ogrid[:48, :48, :64]
    radius = np.hypot(i - 23.5, j - 23.5) * 0.5
    return np.broadcast_to(np.clip(5.5 - radius, 0, 1), SIZE).astype(np.float32)


def patch() -> Sample:
    rng = np.random.default_rng(3)
    coverage = np.ones((3, *SIZE), bool)
    coverage[1, :, :, 40:] = False
    label = np.zeros(SIZE, np.uint8)
    label[20:24, 20:24, 4:9] = 1
    image = rng.standard_normal((3, *SIZE)).astype(np.float32) * 0.5 * coverage
    return Sample(image=image, coverage=coverage, label=label, available=np.array([True, True, True]))


def painted(seed: int, sample: Sample | None = None, config: PaintConfig = ALWAYS) -> Sample:
    rng = np.random.default_rng(seed)
    return paint(sample or patch(), cord(), rng, config, sequences=NAMES, spacings=FINE)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_only_covered_cord_changes_and_what_was_labelled_stays(seed: int) -> None:
    before, after = patch(), painted(seed)
    assert np.array_equal(after.image[:, cord() == 0], before.image[:, cord() == 0])
    assert not after.image[~after.coverage].any()
    assert np.abs(after.image).max() <= CLIP
    old = before.label != 0
    assert np.array_equal(after.label[old], before.label[old])
    assert set(np.unique(after.label)) <= {0, 1, IGNORE}
    # no label outside the cord
    assert not after.label[(cord() == 0) & ~old].any()


def test_lesions_are_bright_and_dark_as_the_sequences_show_them() -> None:
    bright, dark, volumes = [], [], []
    for seed in range(16):
        before, after = patch(), painted(seed)
        new = (after.label == 1) & (before.label == 0) & before.coverage.all(axis=0)
        if new.sum() < 50:
            continue
        change = after.image - before.image
        bright.append(change[0][new].mean())
        dark.append(change[2][new].mean())
        volumes.append(new.sum() * 0.125)
    assert len(volumes) > 6
    assert np.median(bright) > 0.5
    assert min(bright) > -1e-3
    assert np.median(dark) < -0.5
    assert max(dark) < 1e-3
    assert 15 < np.median(volumes) < 400


def test_what_no_sequence_shows_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lesion of which nothing is seen is neither target nor background."""
    for name, value in (("SHOWN", 0.0), ("EASE", (1e3, 1e4)), ("FAINT", 0.0)):
        monkeypatch.setattr(f"bids_scseg.training.paint.{name}", value)
    labels = np.stack([painted(seed).label for seed in range(6)])
    lost, more = (labels == IGNORE).sum(), ((labels == 1) & (patch().label == 0)).sum()
    assert lost > 100
    assert more < 0.1 * lost  # texture lifts single voxels


def test_what_is_lost_among_fluid_does_not_count() -> None:
    """Where every sequence is as bright as can be already, no bright lesion shows."""
    start = patch()
    full = replace(
        start, image=np.full((3, *SIZE), CLIP, np.float32), available=np.array([True, False, False])
    )
    after = [painted(seed, full) for seed in range(6)]
    assert not any(((item.label == 1) & (start.label == 0)).any() for item in after)
    assert any((item.label == IGNORE).any() for item in after)


def test_a_lesion_that_nothing_covers_is_not_painted() -> None:
    blind = replace(patch(), coverage=np.zeros((3, *SIZE), bool), image=np.zeros((3, *SIZE), np.float32))
    after = painted(1, blind)
    assert not after.image.any()
    assert not (after.label == 1)[blind.label == 0].any()


def test_probability_zero_and_same_seed() -> None:
    sample = patch()
    assert painted(0, sample, PaintConfig(probability=0.0)) is sample
    assert np.array_equal(painted(7).image, painted(7).image)
    assert not np.array_equal(painted(7).image, painted(8).image)


def test_visible_contrast_keeps_within_its_bounds() -> None:
    """In a cord of noise with standard deviation 0.5, in fine voxels, texture apart."""
    sample = replace(patch(), label=np.zeros(SIZE, np.uint8))
    faint, strong = (
        [painted(n, sample, PaintConfig(probability=1.0, lesions=(1, 1), contrast=bounds)) for n in range(12)]
        for bounds in ((1.5, 1.6), (6.0, 6.5))
    )

    def largest(after: Sample) -> float:
        return float(np.percentile(np.abs(after.image[0] - sample.image[0])[after.label == 1], 90)) / 0.5

    weak, high = ([largest(one) for one in some if (one.label == 1).sum() > 50] for some in (faint, strong))
    assert len(weak) > 4 and max(weak) < 1.6 * 1.8
    assert max(high) > 4.5


def test_what_shows_less_than_its_bound_does_not_count() -> None:
    sample = replace(patch(), label=np.zeros(SIZE, np.uint8))
    usual = PaintConfig(probability=1.0, lesions=(1, 1), contrast=(1.5, 2.5))
    some, none = (
        np.stack([painted(n, sample, replace(usual, least_contrast=least)).label for n in range(8)])
        for least in (0.7, 9.0)
    )
    assert (some == 1).sum() > 300
    assert not (none == 1).any()
    assert (none == IGNORE).sum() == ((some == 1) | (some == IGNORE)).sum()  # ignored, never background


def test_centres_by_columns_lie_where_lesions_do() -> None:
    rng, free = np.random.default_rng(0), cord() >= 0.5
    places = np.argwhere(free)
    drawn = np.concatenate([column_place(rng, free, cord(), places) for _ in range(600)])
    x, y = ((drawn[:, axis] - 23.5) / 10.5 for axis in (0, 1))  # in half widths
    radius, angle = np.hypot(x, y), np.degrees(np.arctan2(y, x))
    assert free[tuple(drawn.T)].all()
    assert radius.min() > 0.28 and radius.max() < 0.88
    dorsal, ventral = np.abs(angle + 90) < 45, np.abs(angle - 90) < 45
    assert dorsal.mean() == pytest.approx(0.35, abs=0.06)  # 3 standard errors
    assert ventral.mean() == pytest.approx(0.06, abs=0.03)
    assert (x[~dorsal & ~ventral] > 0).mean() == pytest.approx(0.5, abs=0.09)


def test_a_column_that_is_taken_leaves_the_random_place() -> None:
    free = np.zeros(SIZE, bool)
    free[23:25, 23:25] = True  # the middle alone, where no column's centre lies
    drawn = column_place(np.random.default_rng(0), free, cord(), np.argwhere(free))
    assert drawn.shape == (1, 3) and free[tuple(drawn[0])]


def test_usual_options_paint_what_they_always_painted() -> None:
    """Sums of what configurations without the newer options drew before there were any."""
    after = [painted(n) for n in range(4)]
    assert [int((one.label == 1).sum()) for one in after] == [905, 312, 192, 685]
    sums = [158570.1, 155479.8, 154812.2, 158087.3]
    assert [float(np.abs(one.image, dtype=float).sum()) for one in after] == pytest.approx(sums, rel=1e-5)


def test_wide_lesions_come_by_their_option_only() -> None:
    sample = replace(patch(), label=np.zeros(SIZE, np.uint8))
    usual = PaintConfig(probability=1.0, lesions=(1, 1))
    many = replace(usual, wide=1.0)
    plain, wide = (
        [int((painted(n, sample, config).label == 1).sum()) for n in range(16)] for config in (usual, many)
    )
    assert np.median(wide) > 1.5 * np.median(plain)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 8.0))
def test_slices_keep_means_and_bounds(seed: int, thickness: float) -> None:
    rng = np.random.default_rng(seed)
    share = rng.random((6, 7, 40), np.float32)
    out = average(share, (0.5, 0.5, thickness), rng)
    assert out.shape == share.shape
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    flat = np.pad(np.full((4, 4, 24), 0.6, np.float32), ((0, 0), (0, 0), (30, 30)), constant_values=0)
    through = average(flat, (0.5, 0.5, thickness), rng)
    assert through.sum() == pytest.approx(flat.sum(), rel=0.02)  # nothing is gained or lost


def test_slices_by_hand() -> None:
    """Slices of 1 mm are pairs of voxels: their means lie half a voxel off, interpolated between."""

    class First:
        def integers(self, _: int) -> int:
            return 0

    share = np.array([0, 0, 1, 1, 0, 0], np.float32)[None, None]
    out = average(share, (0.5, 0.5, 1.0), First())  # type: ignore[arg-type]
    assert out.ravel() == pytest.approx([0, 0.25, 0.75, 0.75, 0.25, 0])


def test_shapes_have_the_drawn_size() -> None:
    rng = np.random.default_rng(0)
    everywhere = np.ones((96, 96, 160), np.float32)
    for _ in range(20):
        shape = replace(draw_shape(rng, np.array([[48, 48, 80]])), roughness=0.0, exponent=2.0)
        _, share = fill(shape, rng, everywhere)
        a, b, c = shape.half_mm
        if c < 35 and min(a, b) > 1.5:
            assert share.sum() * 0.125 == pytest.approx(4 / 3 * np.pi * a * b * c, rel=0.3)


def test_wide_lesions_take_up_their_share_of_the_cord() -> None:
    rng, cord = np.random.default_rng(0), np.zeros((48, 48, 64), np.float32)
    cord[14:34, 16:32, :40] = 1  # 80 mm²
    for _ in range(20):
        shape = draw_wide(rng, np.array([[24, 24, 20]]), cord)
        assert 20 <= np.pi * shape.half_mm[0] * shape.half_mm[1] <= 48


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
def test_exchange_keeps_signs_and_content(seed: int, there: list[bool]) -> None:
    names = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")
    available = np.array(there)
    image = np.arange(1, 7, dtype=np.float32)[:, None, None, None] * available[:, None, None, None]
    sample = Sample(image=image, coverage=image > 0, label=np.zeros((1, 1, 1), np.uint8), available=available)
    moved, order = exchange(sample, np.random.default_rng(seed), probability=0.8, sequences=names)
    assert sorted(order) == list(range(6))
    assert moved.available.sum() == available.sum()
    assert np.array_equal(moved.image[:, 0, 0, 0] > 0, moved.available)
    bright = np.arange(6) < 4
    for target in np.flatnonzero(moved.available):
        assert bright[int(moved.image[target, 0, 0, 0]) - 1] == bright[target]


def test_a_sequence_of_unknown_sign_is_refused() -> None:
    with pytest.raises(DataError, match="DWI"):
        exchange(patch(), np.random.default_rng(0), probability=1.0, sequences=("T2Sag", "STIR", "DWI"))


def test_a_source_paints(tmp_path: Path) -> None:
    case = make_case()
    share = np.zeros(case.label.shape, np.float16)
    share[3:13, 3:13] = 1
    sampling = SamplingConfig(patch_vox=(16, 16, 32), sequence_dropout=1.0, exchange=0.5)
    source = PreparedCases(
        cases=[replace(case, cord=share)],
        sampling=sampling,
        augmentation=AugmentConfig(flip=0, spatial=0, gamma=0, blur=0, bias=0, low_resolution=0, noise=0),
        painting=ALWAYS,
    )
    plain = replace(source, painting=PaintConfig())
    more = [int((source.sample(n).label == 1).sum() > (plain.sample(n).label == 1).sum()) for n in range(8)]
    assert sum(more) >= 2
    with pytest.raises(DataError, match=r"cord_share\.npy"):
        replace(source, cases=[case]).sample(0)


def test_cases_bring_their_cord_and_spacings(tmp_path: Path) -> None:
    """A sagittal lattice: its axes run P, S, R with 0.7, 0.8 and 3.3 mm, turned by a few degrees."""
    folder = save(tmp_path / "sub-01", make_case())
    affine = [[0.05, 0.0, 3.3, 0], [-0.7, 0.06, 0.2, 0], [0.05, 0.8, 0.0, 0], [0, 0, 0, 1]]
    record = json.loads((folder / "case.json").read_text())
    record["geometry"] = {"slabs": [{"key": "T2Sag", "grid": {"affine": affine}}]}
    (folder / "case.json").write_text(json.dumps(record))
    np.save(folder / "cord_share.npy", np.ones((16, 16, 40), np.float16))
    case = load_case(folder, sequences=("T2Sag",))
    assert case.cord is not None
    assert case.spacings["T2Sag"] == pytest.approx((3.306, 0.7036, 0.802), abs=0.01)
    np.save(folder / "cord_share.npy", np.ones((4, 4, 4), np.float16))
    with pytest.raises(DataError, match="cord"):
        load_case(folder, sequences=("T2Sag",))


@pytest.mark.parametrize(
    "table",
    [{"paint": {"lesions": [3, 1]}}, {"paint": {"probability": 2.0}}, {"sampling": {"exchange": -0.1}}],
)
def test_contradictions_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(DataError):
        config_from_mapping({"name": "x", "recipe": "cord-lesion", **table}, file="x.toml")
