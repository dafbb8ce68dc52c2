"""The plan's table and JSON, and the estimates in them."""

from __future__ import annotations

import json

import pytest
from bids_builders import image, lattice, study

from bids_scseg.bids.estimate import estimate_seconds, superior_range
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.table import imputation, plan_table, plans_to_json
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.study import SequencePlan

RECIPE = load_recipe("cord-lesion")


@pytest.fixture
def plan():
    upper, lower = (image(f"chunk-{n}_T2w", lattice("sag", low=low)) for n, low in ((1, 200.0), (2, 0.0)))
    return make_plan(study(upper, lower, image("T1w"), image("acq-brain_T1w", lattice("iso"))), RECIPE)


def test_table_says_what_is_used_missing_and_left_out(plan):
    text = plan_table([plan])
    lines = text.splitlines()
    assert lines[0].startswith("sub-01: anchor T2Sag, about ")
    assert "sub-01_chunk-1_T2w.nii.gz  14 x 250 x 300, 3 x 0.8 x 0.8 mm (slab 1 of 2)" in lines[1]
    assert lines[2].lstrip().startswith("sub-01_chunk-2_T2w.nii.gz") and lines[2].index("sub") == lines[
        1
    ].index("sub")
    assert "STIR, T2StarAx, T2Ax, MP2RAGE: replaced by the mean of the features of T2Sag, T1Sag" in text
    assert "left out  sub-01_acq-brain_T1w.nii.gz: a brain scan" in text
    assert lines[-1].startswith("1 session, 1 to be segmented; about ")


def test_refused_session_and_empty_list():
    text = plan_table([make_plan(study(), RECIPE)])
    assert "sub-01: CANNOT BE SEGMENTED" in text and "1 session, 0 to be segmented" in text
    assert plan_table([]) == "No sessions.\n"


def test_json_is_complete_and_plain(plan):
    data = json.loads(json.dumps(plans_to_json([plan])))
    session = data["sessions"][0]
    assert [file["file"] for file in session["sequences"]["T2Sag"]] == [
        "sub-01/anat/sub-01_chunk-1_T2w.nii.gz",
        "sub-01/anat/sub-01_chunk-2_T2w.nii.gz",
    ]
    assert session["sequences"]["T1Sag"][0]["plane"] == "sag"
    assert session["missing"] == ["STIR", "T2StarAx", "T2Ax", "MP2RAGE"]
    assert session["anchor"] == "T2Sag" and session["refusal"] is None


def test_imputation_with_one_sequence_and_with_none_missing():
    one = make_plan(study(image("T2w")), RECIPE)
    assert imputation(one) == "replaced by the features of T2Sag"
    assert imputation(make_plan(study(), RECIPE)) == ""


def test_extent_along_the_body():
    assert superior_range(lattice("sag", low=-20.0)) == pytest.approx((-20.0, 220.0))


def test_estimate_of_the_paper_network_by_hand():
    # One 1 mm isotropic image of 250 mm: 500 slices, patches of 320 with steps of 160: 1 + ceil(180/160) = 3
    # patches of 1.96 s; 2.6 megavoxels: 8 + 8 + 2 + 1.5 * 2.6 + 3 * 1.96 = 27.8 s.
    files = (image("T2w", lattice("iso")),)
    assert estimate_seconds([SequencePlan(name="T2Sag", files=files)], RECIPE) == 28
    assert estimate_seconds([], RECIPE) == 0


def test_more_sequences_and_slabs_cost_more():
    single = estimate_seconds([SequencePlan(name="T2Sag", files=(image("T2w"),))], RECIPE)
    slabs = (image("chunk-1_T2w", lattice("sag", low=200.0)), image("chunk-2_T2w"))
    double = estimate_seconds([SequencePlan(name="T2Sag", files=slabs)], RECIPE)
    assert double > single + 11
