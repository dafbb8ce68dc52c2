"""From a session's results to the records of its page: warnings, sources of cords, slabs, levels."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from timed_sessions import straight_geometry

from bids_scseg.inference.bundle import load_bundle, session_mismatch
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.preprocess.reuse import GIVEN
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan
from bids_scseg.report.assemble import (
    MISMATCH,
    NativeCord,
    _cord_sources,
    _level_slices,
    _slab_notes,
    _warnings,
    correction_words,
)

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


SCT_NAMED = "given mask sub-sct019_T2w_label-SC_mask.nii.gz"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["sct_deepseg spinalcord", "sct_deepseg spinalcord"], ("sct",)),
        (["built-in network"], ("builtin",)),
        ([SCT_NAMED], (SCT_NAMED,)),
        (["manual correction built-in.nii.gz"], ("manual correction built-in.nii.gz",)),
        (
            [SCT_NAMED, "built-in network", "manual correction c"],
            (SCT_NAMED, "builtin", "manual correction c"),
        ),
        ([], ()),
    ],
)
def test_cord_masks_are_told_by_how_their_source_begins_and_all_of_them(said, expected):
    natives = {str(n): NativeCord(None, None, "mask", who) for n, who in enumerate(said)}
    natives["blind"] = NativeCord(None, None, None, "built-in network")  # the finder saw no cord there
    slabs = [SimpleNamespace(file=name) for name in (*natives, "unreadable")]
    geometry = SimpleNamespace(slabs_of=lambda key: slabs)
    assert _cord_sources(SimpleNamespace(natives=natives), geometry, "T2Sag") == expected


def test_slabs_are_told_by_what_placed_them():
    moved = {"accepted": True, "reason": "registered", "shift_mm": 1.25, "rotation_deg": 0.5}
    stayed = {"accepted": False, "reason": "not registered by recipe"}
    given = {"accepted": False, "reason": GIVEN}
    assert _slab_notes({"slabs": [{}, moved, stayed, given]}) == (
        "slab moved by 1.2 mm and 0.5° by registration",
        "slab where its header says (not registered by recipe)",
        "slab placed by the geometry given",
    )


def test_levels_are_half_open_ranges_of_slices():
    geometry = straight_geometry(0.0, 120.0)  # slices of 0.5 mm from -10 mm on, 280 of them
    levels = [("C1", 125.0, 140.0), ("C2", 100.0, 125.0), ("L1", -30.0, -9.9), ("L2", -50.0, -30.0)]
    levels.append(("C0", 140.0, 150.0))
    found = _level_slices(levels, geometry)
    assert [name for name, _, _ in found] == ["C1", "C2", "L1"]  # those of which a slice is in the grid
    assert found[1][1:] == pytest.approx((220.0, 270.0))
    s = geometry.s_mm
    for (name, bottom, top), (same, low, high) in zip(found, levels[:3], strict=True):
        assert name == same
        assert [bottom <= k < top for k in range(s.size)] == [low <= at < high for at in s]
