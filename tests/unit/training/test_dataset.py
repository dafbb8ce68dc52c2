from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cases import SIZE, make_case

from bids_scseg.errors import DataError
from bids_scseg.training.config import AugmentConfig, SamplingConfig
from bids_scseg.training.dataset import (
    PreparedCases,
    covered_only,
    crop,
    draw_alone,
    draw_place,
    draw_sequences,
    lesion_places,
    reaching,
    shown_places,
)
from bids_scseg.training.sample import IGNORE


def test_a_source_shows_the_wanted_sequences_alone() -> None:
    sampling = SamplingConfig(patch_vox=(16, 16, 16), sequences=("STIR",))
    source = PreparedCases(cases=[make_case()], sampling=sampling)
    assert {tuple(source.sample(n).available) for n in range(5)} == {(False, True, False)}


def test_by_patch_a_sequence_that_covers_nothing_is_missing() -> None:
    none = AugmentConfig(flip=0.0, spatial=0.0)
    sampling = SamplingConfig(patch_vox=(16, 16, 8), foreground=0.0, by_patch=True)
    source = PreparedCases(cases=[make_case()], sampling=sampling, augmentation=none)
    samples = [source.sample(n) for n in range(60)]
    # STIR begins at slice 10: there are patches with and without it
    assert {bool(sample.available[1]) for sample in samples} == {True, False}
    assert all(sample.available[1] == sample.coverage[1].any() for sample in samples)
    assert all(sample.available[0] for sample in samples)
    nothing = replace(samples[0], coverage=np.zeros_like(samples[0].coverage))
    assert covered_only(nothing).available.any()


def test_known_places_change_nothing() -> None:
    sampling = SamplingConfig(patch_vox=(16, 16, 16), foreground=0.7)
    case, kept = make_case(), np.array([True, True, False])
    for seed in range(20):
        one = draw_place(np.random.default_rng(seed), case, sampling, kept=kept)
        places = lesion_places(case)
        assert one == draw_place(np.random.default_rng(seed), case, sampling, kept=kept, places=places)


@given(seed=st.integers(0, 5000), dropout=st.floats(0, 1))
def test_dropout_keeps_a_non_empty_subset_of_the_available(seed: int, dropout: float) -> None:
    available = np.array([True, False, True, True])
    kept = draw_sequences(np.random.default_rng(seed), available, SamplingConfig(sequence_dropout=dropout))
    assert kept.any()
    assert not (kept & ~available).any()


def test_every_sequence_can_be_dropped_the_anchor_too() -> None:
    rng = np.random.default_rng(0)
    sampling = SamplingConfig(sequence_dropout=1.0)
    draws = np.array([draw_sequences(rng, np.ones(3, bool), sampling) for _ in range(200)])
    assert not draws.all(axis=0).any()
    assert (draws.sum(axis=1) == 1).mean() > 0.2


def test_dropout_keeps_no_more_sequences_than_it_may() -> None:
    rng = np.random.default_rng(0)
    sampling = SamplingConfig(sequence_dropout=1.0, dropout_keeps=2)
    counts = [int(draw_sequences(rng, np.ones(5, bool), sampling).sum()) for _ in range(100)]
    assert set(counts) == {1, 2}


def test_some_sequences_are_shown_alone_as_often_as_wanted() -> None:
    rng = np.random.default_rng(0)
    names = ("T2Sag", "STIR", "T2Ax")
    sampling = SamplingConfig(alone=("T2Sag", "STIR"), alone_share=0.5)
    draws = np.array([draw_alone(rng, np.ones(3, bool), sampling, names=names) for _ in range(400)])
    single = draws.sum(axis=1) == 1
    assert single.mean() == pytest.approx(0.5, abs=0.08)  # 3 standard errors
    assert draws[single].mean(axis=0) == pytest.approx([0.5, 0.5, 0.0], abs=0.11)
    assert draws[~single].all()


def test_a_case_without_the_sequences_that_are_shown_alone_shows_what_it_has() -> None:
    sampling = SamplingConfig(alone=("T2Sag",), alone_share=1.0)
    available = np.array([False, True, True])
    kept = draw_alone(np.random.default_rng(0), available, sampling, names=("T2Sag", "STIR", "T2Ax"))
    assert kept.tolist() == available.tolist()


def test_by_patch_keeps_only_sequences_that_reach_the_place() -> None:
    case = make_case()
    coverage = np.array(case.coverage)
    coverage[0, :, :, 20:] = False
    case = replace(case, coverage=coverage)
    assert reaching(case, (8, 8, 35), (16, 16, 16)).tolist() == [False, *case.available[1:].tolist()]
    assert reaching(case, (8, 8, 10), (16, 16, 16))[0]
    sampling = SamplingConfig(patch_vox=(16, 16, 16), sequence_dropout=1.0, by_patch=True, foreground=0.0)
    source = PreparedCases(
        cases=[case], sampling=sampling, augmentation=AugmentConfig(flip=0.0, spatial=0.0), seed=3
    )
    for number in range(30):
        sample = source.sample(number)
        assert sample.coverage[sample.available].any(axis=(1, 2, 3)).all()


def test_crop_pads_short_cases_in_the_middle() -> None:
    kept = np.array([True, True, False])
    out = crop(make_case(), (8, 8, 20), (16, 16, 48), kept=kept)
    assert out.image.shape == (3, 16, 16, 48)
    assert (out.label[:, :, :4] == IGNORE).all()
    assert (out.label[:, :, 44:] == IGNORE).all()
    assert np.array_equal(out.image[0, :, :, 4:44], make_case().image[0].astype(np.float32))


def test_dropped_sequences_leave_no_trace() -> None:
    out = crop(make_case(), (8, 8, 20), SIZE, kept=np.array([False, True, False]))
    assert not out.image[0].any()
    assert not out.coverage[0].any()
    # where only T2Sag had data nothing counts any more
    assert (out.label[:, :, :10] == IGNORE).all()
    assert (out.label[6:9, 6:9, 30:34] == 1).all()


def test_lesions_that_no_kept_sequence_shows_do_not_count() -> None:
    case = make_case(visible={1: (), 2: ("STIR",)}, faint={1: ("T2Sag",), 2: ()})
    both = crop(case, (8, 8, 20), SIZE, kept=np.array([True, True, False])).label
    assert both[7, 7, 6] == 1
    assert both[7, 7, 31] == 1
    only = crop(case, (8, 8, 20), SIZE, kept=np.array([True, False, False])).label
    assert only[7, 7, 6] == 1
    assert only[7, 7, 31] == IGNORE


def test_patches_on_lesions_hold_lesion() -> None:
    sampling = SamplingConfig(patch_vox=(16, 16, 16), foreground=1.0)
    case, kept = make_case(), np.array([True, True, False])
    for seed in range(30):
        place = draw_place(np.random.default_rng(seed), case, sampling, kept=kept)
        assert (crop(case, place, sampling.patch_vox, kept=kept).label == 1).any()


def test_examples_are_replayable_and_summarised() -> None:
    source = PreparedCases(
        cases=[make_case(), make_case("02")],
        sampling=SamplingConfig(patch_vox=(16, 16, 16), sequence_dropout=0.5),
        augmentation=AugmentConfig(),
        seed=5,
    )
    one, two, other = source.sample(3), source.sample(3), source.sample(4)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)
    summary = source.summary()
    assert summary["cases"] == 2
    assert summary["lesions"] == 4
    assert summary["available"] == {"T2Sag": 2, "STIR": 2, "MP2RAGE": 0}


def test_values_that_are_not_finite_name_their_case() -> None:
    case = make_case("07")
    case.image[1, 8, 8, 20] = np.nan
    kept = np.array([True, True, False])
    with pytest.raises(DataError, match="sub-07: image with values that are not finite"):
        crop(case, (8, 8, 20), (8, 8, 8), kept=kept)
    crop(case, (8, 8, 20), (8, 8, 8), kept=np.array([True, False, False]))
    crop(case, (8, 8, 32), (8, 8, 8), kept=kept)


def test_patches_are_centred_on_lesions_that_count() -> None:
    case = make_case(visible={1: ("MP2RAGE",)})  # lesion 1 lies in slices 5 to 7, STIR begins at slice 10
    covered_partly = np.array(case.label)
    covered_partly[6:9, 6:9, 8:12] = 3
    case = replace(case, label=covered_partly)
    kept, patch = np.array([False, True, False]), (16, 16, 4)
    sampling = SamplingConfig(patch_vox=patch, foreground=1.0, shown_lesions=True)
    places = shown_places(case, lesion_places(case), kept=kept)
    assert [sorted(set(voxels[:, 2])) for voxels in places] == [[30, 31, 32, 33], [10, 11]]
    for number in range(40):
        place = draw_place(np.random.default_rng(number), case, sampling, kept=kept)
        assert (crop(case, place, patch, kept=kept).label == 1).any()
    # where none counts, places are those of patches on no lesion
    none = replace(case, visible={1: (), 2: ("T2Sag",), 3: ()})
    places_ = [draw_place(np.random.default_rng(n), none, sampling, kept=kept) for n in range(40)]
    assert {place[:2] for place in places_} == {(8, 8)}
    assert min(place[2] for place in places_) >= 10


def test_lesions_that_do_not_count_are_drawn_unless_asked_otherwise() -> None:
    case, kept = make_case(visible={1: (), 2: ()}), np.array([True, False, False])
    sampling = SamplingConfig(patch_vox=(16, 16, 4), foreground=0.75)
    drawn = [draw_place(np.random.default_rng(n), case, sampling, kept=kept) for n in range(6)]
    # as drawn by the first version: experiments that were begun with it must end with it
    assert drawn == [(6, 8, 30), (8, 8, 31), (6, 8, 7), (6, 8, 4), (8, 8, 35), (8, 8, 0)]
