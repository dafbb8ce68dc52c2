"""Filter files: strict to read, exact in what they select."""

from __future__ import annotations

import json

import pytest
from bids_builders import image

from bids_scseg.bids.filters import parse_filters, read_filters, selects
from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.load import load_recipe

RECIPE = load_recipe("cord-lesion")


def test_values_lists_null_and_both_kinds_of_names():
    parsed = parse_filters(
        {"T2Sag": {"acquisition": "sag", "run": [1, "2"], "ce": None, "suffix": "T2w"}}, RECIPE
    )
    assert parsed == {"T2Sag": {"acq": ("sag",), "run": ("1", "2"), "ce": None, "suffix": ("T2w",)}}


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("acq-sag_run-1_T2w", True), ("acq-sag_run-02_T2w", True), ("acq-sag_run-3_T2w", False),
        ("acq-sag_T2w", False), ("acq-sag_ce-gad_run-1_T2w", False), ("acq-sag_run-1_T1w", False),
    ],
)  # fmt: skip
def test_selects(rest, expected):
    wanted = {"acq": ("sag",), "run": ("1", "2"), "ce": None, "suffix": ("T2w",)}
    assert selects(wanted, image(rest)) is expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "not an object"),
        ({"T2": {"acq": "x"}}, "unknown sequence 'T2'"),
        ({"T2Sag": "sag"}, "no entities"),
        ({"T2Sag": {}}, "no entities"),
        ({"T2Sag": {"acquisitions": "sag"}}, "unknown entity"),
        ({"T2Sag": {"acq": "a", "acquisition": "b"}}, "twice"),
        ({"T2Sag": {"acq": []}}, "has the value"),
        ({"T2Sag": {"acq": True}}, "has the value"),
        ({"T2Sag": {"acq": {"x": 1}}}, "has the value"),
    ],
)
def test_malformed_content_is_refused(data, words):
    with pytest.raises(DataError, match=words):
        parse_filters(data, RECIPE, file="f.json")


def test_reading(tmp_path):
    file = tmp_path / "f.json"
    with pytest.raises(MissingInputError):
        read_filters(file, RECIPE)
    file.write_text("{")
    with pytest.raises(DataError, match=r"f\.json: cannot be read"):
        read_filters(file, RECIPE)
    file.write_text(json.dumps({"STIR": {"suffix": "STIR"}}))
    assert read_filters(file, RECIPE) == {"STIR": {"suffix": ("STIR",)}}
