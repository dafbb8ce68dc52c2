"""Warnings of a session's page."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from bids_scseg.inference.bundle import load_bundle, session_mismatch
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan
from bids_scseg.report.assemble import MISMATCH, _warnings, correction_words

IMAGE = ImageFile(path="/data/a", relative="a", entities=(), suffix="T2w")
PLAN = Plan(
    subject="1",
    session=None,
    dataset="/data",
    recipe="cord-lesion",
    sequences=(SequencePlan(name="T2Sag", files=(IMAGE,)),),
    missing=(),
    anchor="T2Sag",
)


@pytest.mark.parametrize(
    ("facts", "titles"),
    [
        (ModelFacts(), ["Choice of files"]),
        (ModelFacts(preparation=PREPARATION_VERSION, cord_method="sct"), ["Choice of files"]),
        (ModelFacts(preparation=PREPARATION_VERSION, cord_method="masks"), [MISMATCH, "Choice of files"]),
        (ModelFacts(preparation=-1, cord_method="masks"), [MISMATCH, MISMATCH, "Choice of files"]),
    ],
)
def test_what_the_model_was_not_trained_on_is_a_serious_warning(facts, titles):
    bundle = replace(load_bundle("cord-lesion"), facts=facts)
    told = session_mismatch(bundle, PLAN, cord_method="sct")
    plan = replace(PLAN, warnings=(*told, "two files fit"))
    given = SimpleNamespace(
        bundle=bundle, plan=plan, run={"cord_method": "sct"}, fit={}, engine={}, measures={}
    )
    flags = _warnings(given)
    assert [flag.title for flag in flags] == titles  # each of them once
    assert all(flag.severity == "serious" for flag in flags if flag.title == MISMATCH)


def test_a_correction_is_told_with_its_limits():
    found = {
        "origin": "mixed", "files": [{"file": "m.nii.gz", "sha256": "ab"}], "kept": 1, "redrawn": 2,
        "notes": ["1 lesion of the model stands"],
    }  # fmt: skip
    measures = {"mask_origin": "mixed", "correction": found}
    words = (
        "Lesions are those of the manual correction m.nii.gz: 1 as the model drew it, 2 as the reader did."
    )
    assert correction_words(measures) == words
    assert correction_words({"mask_origin": "model"}) == ""
    given = SimpleNamespace(
        bundle=load_bundle("cord-lesion"), plan=PLAN, run={"cord_method": "sct"}, fit={}, engine={},
        measures=measures,
    )  # fmt: skip
    told = [(flag.severity, flag.title) for flag in _warnings(given) if flag.title != MISMATCH]
    assert told == [("note", "Lesions corrected by hand"), ("caution", "Limits of the correction")]
