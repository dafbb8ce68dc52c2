"""Which subjects an evaluation is over, by name or by a training's split."""

from __future__ import annotations

import json

import pytest

from bids_scseg.bids.split import MODEL_FILE, find_split, read_split, select
from bids_scseg.errors import DataError, MissingInputError, UsageError
from bids_scseg.inference import bundle


@pytest.fixture
def training(tmp_path):
    """A training's folder with its bundle."""
    split = {"training": ["01", "02"], "validation": ["03"], "test": ["sub-04", "05"], "seed": 0}
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.json").write_text("{}")
    return tmp_path


def _write(folder, **sides):
    (folder / "split.json").write_text(json.dumps(sides))
    return folder / "split.json"


def test_a_split_is_found_by_file_training_or_bundle(training):
    assert MODEL_FILE == bundle.MODEL_FILE
    file = training / "split.json"
    assert [find_split(path) for path in (file, training, training / "bundle")] == [file] * 3
    (training / "other").mkdir()  # no bundle: the file above is not its own
    for path in (training / "other", training / "none.json"):
        with pytest.raises(MissingInputError, match="no such split"):
            find_split(path)


def test_the_test_side_comes_first_then_validation(training):
    chosen = select(split=training)
    assert (chosen.side, chosen.subjects, chosen.named) == ("test", {"04", "05"}, False)
    assert chosen.holds("sub-04")
    assert not chosen.holds("sub-01")
    assert select(split=training, side="training").subjects == {"01", "02"}
    _write(training, training=["01"], validation=["03"], test=[])
    assert (select(split=training).side, select(split=training).subjects) == ("validation", {"03"})
    with pytest.raises(
        DataError, match="nobody is on the test side of this split; expected one of training, val"
    ):
        select(split=training, side="test")
    _write(training, training=["01"], validation=[])
    with pytest.raises(DataError, match="nobody is on the test or validation side"):
        select(split=training)


def test_names_choose_among_all_or_within_a_side(training):
    assert select().holds("sub-99")
    assert not select(("sub-01",)).holds("sub-02")
    assert select(("01",)).holds("sub-01")
    assert select(("cases",)).holds("folder/cases")  # a file without sub- is known by its name
    assert select(("sub-05",), split=training).subjects == {"05"}
    with pytest.raises(UsageError, match="sub-01: not on the test side"):
        select(("01", "05"), split=training)
    with pytest.raises(UsageError, match="without a split"):
        select(side="test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"training": ["01"]}', "malformed"),
        ('{"validation": "01"}', "malformed"),
        ('["01"]', "malformed"),
        ("{", "cannot be read as JSON"),
        ('{"validation": ["01"], "test": ["sub-01"]}', "two sides"),
        ('{"validation": [], "test": ["01"], "training": ["01"]}', "two sides"),
    ],
)
def test_a_split_that_cannot_be_meant_is_refused(tmp_path, text, words):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_split(tmp_path / "split.json")
