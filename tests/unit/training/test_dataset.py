from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.training.config import AugmentConfig, SamplingConfig, ValidationConfig
from bids_scseg.training.dataset import (
    PreparedCases,
    TrainingCase,
    covered_only,
    crop,
    draw_place,
    draw_sequences,
    find_cases,
    kept_sequences,
    lesion_places,
    load_case,
    reaching,
)
from bids_scseg.training.sample import IGNORE
from bids_scseg.training.split import split_cases

NAMES = ("T2Sag", "STIR", "MP2RAGE")
SIZE = (16, 16, 40)


def make_case(subject: str = "01", **changes: object) -> TrainingCase:
    coverage = np.ones((3, *SIZE), bool)
    coverage[2] = False
    coverage[1, :, :, :10] = False
    label = np.zeros(SIZE, np.uint8)
    label[6:9, 6:9, 5:8] = 1
    label[6:9, 6:9, 30:34] = 2
    image = np.random.default_rng(0).standard_normal((3, *SIZE)).astype(np.float16) * coverage
    fields = {
        "name": f"sub-{subject}",
        "subject": subject,
        "sequences": NAMES,
        "available": np.array([True, True, False]),
        "image": image,
        "coverage": coverage,
        "label": label,
    }
    return TrainingCase(**{**fields, **changes})  # type: ignore[arg-type]


def save(folder: Path, case: TrainingCase) -> Path:
    folder.mkdir(parents=True)
    for name in ("image", "coverage", "label"):
        np.save(folder / f"{name}.npy", getattr(case, name), allow_pickle=False)
    record = {
        "case": case.name,
        "subject": case.subject,
        "session": None,
        "recipe": "cord-lesion",
        "sequences": list(case.sequences),
        "available": case.available.tolist(),
        "geometry": None,
    }
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_round_trip_through_disk_and_to_a_worker(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    (folder / "lesions.json").write_text('{"1": {"visible": ["STIR"], "faint": ["T2Sag"]}}', encoding="utf-8")
    case = load_case(folder, sequences=NAMES)
    assert isinstance(case.image, np.memmap)
    assert case.lesions == (1, 2)
    assert case.visible == {1: ("STIR",)}
    assert case.faint == {1: ("T2Sag",)}
    sent = pickle.dumps(case)
    assert len(sent) < 1000  # a path, not the arrays
    assert np.array_equal(pickle.loads(sent).label, case.label)  # noqa: S301
    memory = pickle.loads(pickle.dumps(make_case()))  # noqa: S301
    assert np.array_equal(memory.image, make_case().image)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no prepared cases"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"label": np.zeros((16, 16, 39), np.uint8)}, "label of shape"),
        ({"label": np.zeros(SIZE, np.int32)}, "int32"),
        ({"coverage": np.ones((2, *SIZE), bool)}, "coverage"),
        ({"sequences": ("T2Sag", "STIR", "PSIR")}, "PSIR"),
        ({"available": np.zeros(3, bool)}, "no sequence"),
    ],
)
def test_what_does_not_match_is_refused(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(DataError, match=word):
        load_case(save(tmp_path / "a", make_case(**changes)), sequences=NAMES)


def test_a_missing_label_says_what_to_do(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    (folder / "label.npy").unlink()
    with pytest.raises(MissingInputError, match="Prepare the labels"):
        load_case(folder, sequences=NAMES)


def test_splits_are_written_down_by_subject(tmp_path: Path) -> None:
    some = [make_case(f"{n:02d}") for n in range(10) for _ in range(2)]
    training, held = split_cases(some, ValidationConfig(fraction=0.3), seed=3, out=tmp_path / "split.json")
    assert len(training) + len(held) == 20
    written = json.loads((tmp_path / "split.json").read_text())
    assert written["validation"] == sorted({c.subject for c in held})
    assert written["training"] == sorted({c.subject for c in training})
    assert not set(written["training"]) & set(written["validation"])


def test_a_network_of_some_sequences_takes_their_channels(tmp_path: Path) -> None:
    case = make_case()
    folder = save(tmp_path / "a", case)
    some = load_case(folder, sequences=("MP2RAGE", "STIR"))
    assert some.sequences == ("MP2RAGE", "STIR")
    assert some.available.tolist() == [False, True]
    assert isinstance(some.image, np.memmap)  # nothing is copied
    for one in (some, pickle.loads(pickle.dumps(some))):  # noqa: S301
        patch = crop(one, (8, 8, 20), SIZE, kept=np.array([False, True]))
        assert np.array_equal(patch.image[1], case.image[1].astype(np.float32))
        assert not patch.image[0].any()
        assert np.array_equal(patch.coverage[1], case.coverage[1])
    assert np.array_equal(some.covered(some.available), case.coverage[1])
    # none of the wanted ones is there: no error, training leaves such cases out
    assert not load_case(folder, sequences=("MP2RAGE",)).available.any()


def test_shown_sequences_are_the_available_ones_among_the_wanted() -> None:
    assert kept_sequences(make_case(), ()).tolist() == [True, True, False]
    assert kept_sequences(make_case(), ("STIR", "MP2RAGE")).tolist() == [False, True, False]
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


def test_how_a_case_was_made_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    assert load_case(folder, sequences=NAMES).made.cord_method is None
    record = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**record, "preparation": 1, "cord_method": "masks"}))
    assert load_case(folder, sequences=NAMES).made.cord_method == "masks"


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
