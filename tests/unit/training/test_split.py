from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.split import split_subjects, write_split

NAMES = [f"{n:02d}" for n in range(30)]


def test_shares_stay_when_subjects_are_added() -> None:
    config = ValidationConfig(fraction=0.2)
    some = split_subjects(NAMES, config, seed=3)
    more = split_subjects([*NAMES, *(f"{n:02d}" for n in range(30, 60))], config, seed=3)
    assert set(some.training) <= set(more.training)
    assert set(some.validation) <= set(more.validation)
    assert not set(some.training) & set(some.validation)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_neither_side_of_a_split_is_empty(count: int, fraction: float) -> None:
    split = split_subjects(NAMES[:count], ValidationConfig(fraction=fraction), seed=0)
    assert split.training
    assert split.validation


@given(count=st.integers(3, 60), share=st.floats(0.01, 0.4), seed=st.integers(0, 99))
def test_three_sides_share_nobody_and_none_is_empty(count: int, share: float, seed: int) -> None:
    names = [str(n) for n in range(count)]
    config = ValidationConfig(fraction=share, test=share)
    split = split_subjects(names, config, seed=seed)
    assert split.training and split.validation and split.test
    assert sorted([*split.training, *split.validation, *split.test]) == sorted(names)


def test_a_test_share_moves_nobody_between_the_other_sides_nor_do_new_subjects() -> None:
    without = split_subjects(NAMES, ValidationConfig(fraction=0.2), seed=3)
    split = split_subjects(NAMES, ValidationConfig(fraction=0.2, test=0.2), seed=3)
    assert split.validation == without.validation
    assert set(split.training) < set(without.training)
    assert without.test == ()
    more = split_subjects([*NAMES, "30", "31", "32"], ValidationConfig(fraction=0.2, test=0.2), seed=3)
    assert set(split.test) <= set(more.test)
    assert set(split.validation) <= set(more.validation)


def test_a_test_share_is_taken_from_those_who_are_not_named_or_dealt_into_folds() -> None:
    named = split_subjects(NAMES, ValidationConfig(subjects=("03", "07"), test=0.2), seed=0)
    assert named.validation == ("03", "07")
    folds = [split_subjects(NAMES, ValidationConfig(folds=3, fold=k, test=0.2), seed=0) for k in range(3)]
    assert len({fold.test for fold in folds}) == 1, "a test is the same for all folds"
    held = [name for fold in folds for name in fold.validation]
    assert sorted([*held, *folds[0].test]) == NAMES
    with pytest.raises(DataError, match=r"2 subjects .*expected at least 3"):
        split_subjects(NAMES[:2], ValidationConfig(test=0.2), seed=0)


@given(count=st.integers(2, 40), folds=st.integers(2, 7), seed=st.integers(0, 99))
def test_folds_hold_out_every_subject_once(count: int, folds: int, seed: int) -> None:
    names = [str(n) for n in range(count)]
    if folds > count:
        with pytest.raises(DataError, match="folds"):
            split_subjects(names, ValidationConfig(folds=folds), seed=seed)
        return
    splits = [split_subjects(names, ValidationConfig(folds=folds, fold=k), seed=seed) for k in range(folds)]
    held = [name for split in splits for name in split.validation]
    assert sorted(held) == sorted(names)
    sizes = {len(split.validation) for split in splits}
    assert max(sizes) - min(sizes) <= 1
    assert all(not set(split.training) & set(split.validation) for split in splits)


def test_named_subjects_are_held_out() -> None:
    split = split_subjects(NAMES, ValidationConfig(subjects=("03", "sub-07")), seed=0)
    assert split.validation == ("03", "07")
    assert len(split.training) == 28
    with pytest.raises(DataError, match="Did you mean 'sub3'"):
        split_subjects(["sub3", "sub4"], ValidationConfig(subjects=("sub33",)), seed=0)


def test_a_split_file_says_all_or_only_who_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    config = ValidationConfig(split=str(file))
    with pytest.raises(MissingInputError):
        split_subjects(NAMES, config, seed=0)
    file.write_text(json.dumps({"validation": ["sub-01"], "test": ["02"]}))
    split = split_subjects(NAMES, config, seed=0)
    assert (split.validation, split.test, len(split.training)) == (("01",), ("02",), 28)
    for data, word in (
        ({"validation": ["01"], "training": ["01", "02"]}, "two sides"),
        ({"validation": ["01"], "training": ["02"]}, "no side"),
        ({"validation": ["99"]}, "'99' is not in the data"),
        ({"training": ["01"]}, "malformed"),
        ({"validation": "01"}, "malformed"),
    ):
        file.write_text(json.dumps(data))
        with pytest.raises(DataError, match=word):
            split_subjects(NAMES, config, seed=0)


def test_what_is_written_down_is_a_split_that_can_be_given(tmp_path: Path) -> None:
    split = split_subjects(NAMES, ValidationConfig(fraction=0.3), seed=3)
    assert not set(split.training) & set(split.validation)
    write_split(tmp_path / "split.json", split, seed=3)
    assert json.loads((tmp_path / "split.json").read_text())["seed"] == 3
    again = ValidationConfig(split=str(tmp_path / "split.json"), test=0.2)
    assert split_subjects(NAMES, again, seed=8) == split, "the file says who is tested"
    tested = split_subjects(NAMES, ValidationConfig(fraction=0.3, test=0.2), seed=3)
    write_split(tmp_path / "split.json", tested, seed=3)
    assert split_subjects(NAMES, again, seed=8) == tested
