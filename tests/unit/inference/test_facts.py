from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import DataError
from bids_scseg.inference.facts import (
    CORD_ORIGINS,
    ModelFacts,
    as_object,
    facts_from_json,
    facts_to_json,
    join_origins,
    spdx,
    split_origins,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NUMBERS = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(
    st.builds(
        ModelFacts,
        preparation=st.none() | st.integers(min_value=0),
        cord_method=st.sets(st.sampled_from(sorted(CORD_ORIGINS))).map(join_origins),
        license=st.none() | st.sampled_from(["CC-BY-NC-4.0", "LicenseRef-ours", "MIT OR Apache-2.0"]),
        authors=st.lists(st.sampled_from(["Ada Lovelace", "Grace Hopper"])).map(tuple),
        contact=st.none() | st.just("group@example.org"),
        training_data=st.dictionaries(st.text(), VALUES),
        metrics=st.dictionaries(st.text(), st.dictionaries(st.text(), NUMBERS)),
        calibration=st.dictionaries(st.text(), VALUES),
    )
)
def test_facts_survive_the_way_through_json(facts):
    text = json.dumps(facts_to_json(facts), allow_nan=False)
    assert facts_from_json(json.loads(text)) == facts


def test_undefined_numbers_become_null_and_numpy_becomes_plain():
    facts = ModelFacts(
        metrics={"test": {"dice": float("nan"), "f1": np.float32(0.5), "lesions": np.int64(3)}},
        training_data={"shape": (1, np.int16(2)), "inf": [float("inf")]},
    )
    assert facts_to_json(facts) == {
        "metrics": {"test": {"dice": None, "f1": 0.5, "lesions": 3}},
        "training_data": {"shape": [1, 2], "inf": [None]},
    }


def test_what_is_not_recorded_is_not_written():
    assert facts_to_json(ModelFacts()) == {}
    assert facts_from_json({}) == ModelFacts()
    assert facts_to_json(ModelFacts(preparation=0)) == {"preparation": 0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"preparation": "1"}, "facts.preparation is '1'; expected int"),
        ({"preparation": True}, "facts.preparation is True"),
        ({"cord_method": "magic"}, "facts.cord_method is 'magic'; expected one of .* joined by \\+"),
        ({"cord_method": "masks+magic"}, "facts.cord_method is 'masks\\+magic'"),
        ({"cord_method": ""}, "facts.cord_method is ''"),
        ({"cord_method": ["masks"]}, "facts.cord_method is .*; expected str"),
        ({"metrics": {"test": 0.5}}, "facts.metrics.test is 0.5"),
        ({"metrics": {"test": {"dice": [1]}}}, "facts.metrics.test.dice is"),
        ({"license": None}, "facts.license is None"),
        ({"authors": "Ada"}, "facts.authors is 'Ada'; expected list"),
        ({"authors": ["Ada", 3]}, "facts.authors is 3; expected one line of printable text"),
        ({"contact": "a@b.org\nc"}, "facts.contact is"),
    ],
)
def test_malformed_facts(data, message):
    with pytest.raises(DataError, match=message):
        facts_from_json(data, file="model.json")


def test_several_origins_of_cords_are_one_text():
    assert join_origins(["sct", "masks", "sct"]) == join_origins(["masks", "sct"]) == "masks+sct"
    assert split_origins("masks+sct") == ("masks", "sct")
    assert split_origins("jittered-masks") == ("jittered-masks",)  # as bundles have had it from the beginning
    assert join_origins([]) is None
    assert split_origins(None) == ()


def test_licences_are_spdx():
    assert spdx("cc-by-nc-4.0") == "CC-BY-NC-4.0"
    for wrong in ("Creative Commons", "ours", ""):
        with pytest.raises(DataError, match="SPDX"):
            spdx(wrong)
    with pytest.raises(DataError, match="SPDX"):
        facts_to_json(ModelFacts(license="free for friends"))


def test_objects_from_text():
    assert as_object('{"a": 1}') == {"a": 1}
    assert as_object("[1]") == as_object("synthetic") == as_object("") == {}
