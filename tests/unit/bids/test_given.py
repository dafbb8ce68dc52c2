"""Geometries of an earlier run: found, compared with the session, refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace

import bids_builders as builders
import numpy as np
import pytest

from bids_scseg.bids.given import find_geometry, read_geometry, with_geometry
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.table import plan_table, plans_to_json
from bids_scseg.errors import DataError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

RECIPE = load_recipe("cord-lesion")
SAG = builders.image("acq-sag_T2w", builders.lattice("sag"))
AX = builders.image("acq-ax_T2starw", builders.lattice("ax", low=60.0))
SHAPE = (48, 48, 100)


def geometry(*images, spacing: float = 0.5, shape=SHAPE) -> Geometry:
    """A geometry fitted to (sequence, image) pairs; the first is the anchor."""
    line = Centerline(s_mm=[0.0, 50.0], xy_mm=np.zeros((2, 2)), measured=[True, True])
    return Geometry(
        frame="centerline",
        anchor=images[0][0],
        grid=Grid(shape=shape, affine=np.diag([spacing, spacing, spacing, 1.0])),
        slabs=tuple(Slab(key=key, index=0, file=image.relative, grid=image.grid) for key, image in images),
        centerlines={key: line for key, _ in images},
    )


BOTH = geometry(("T2Sag", SAG), ("T2StarAx", AX))


@pytest.fixture
def earlier(tmp_path):
    """Writes a geometry as an earlier run would have; returns the folder."""

    def write(fitted: Geometry | str, name: str = "sub-01/anat/sub-01_geometry.json"):
        path = tmp_path / "earlier" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fitted if isinstance(fitted, str) else json.dumps(fitted.to_json()))
        return tmp_path / "earlier"

    return write


def plan_of(*images, **options):
    return make_plan(builders.study(*images), RECIPE, **options)


def test_found_by_subject_and_session(earlier):
    folder = earlier(BOTH, "sub-01/ses-2/anat/sub-01_ses-2_geometry.json")
    assert find_geometry(folder, subject="01", session="2") is not None
    assert find_geometry(folder, subject="01", session=None) is None
    assert find_geometry(folder, subject="01", session="1") is None


def test_a_plan_that_applies_it(earlier):
    folder = earlier(BOTH)
    plan = with_geometry(plan_of(SAG, AX), folder, RECIPE)
    assert plan.geometry == str(folder / "sub-01" / "anat" / "sub-01_geometry.json")
    assert plan.refusal is None
    assert plan.available == ("T2Sag", "T2StarAx")
    assert any("nothing was fitted" in note for note in plan.warnings)
    assert "applied as it is" in plan_table([plan])
    assert plans_to_json([plan])["sessions"][0]["geometry"] == plan.geometry


def test_its_anchor_counts(earlier):
    """In the earlier run no cord was found in the sagittal image."""
    plan = with_geometry(plan_of(SAG, AX), earlier(geometry(("T2StarAx", AX))), RECIPE)
    assert plan.anchor == "T2StarAx"
    assert plan.available == ("T2StarAx",)
    assert "T2Sag" in plan.missing
    assert (SAG.relative, "sub-01_geometry.json has no place for it") in plan.left_out


def test_without_one_the_session_is_fitted(tmp_path):
    plan = with_geometry(plan_of(SAG, AX), tmp_path, RECIPE)
    assert plan.geometry == ""
    assert plan.anchor == "T2Sag"
    assert any("it is fitted" in note for note in plan.warnings)


def test_sequences_that_were_not_asked_for_may_be_missing(earlier):
    folder = earlier(BOTH)
    plan = with_geometry(plan_of(SAG, AX, sequences=["T2Sag"]), folder, RECIPE)
    assert plan.refusal is None
    assert plan.available == ("T2Sag",)
    other = with_geometry(plan_of(SAG, AX, sequences=["T2StarAx"]), folder, RECIPE)
    assert "stands on T2Sag, which was not asked for" in other.refusal


def test_a_session_that_is_refused_anyway_stays_so(earlier):
    plan = plan_of()
    assert with_geometry(plan, earlier(BOTH), RECIPE) == plan


MOVED = replace(SAG, grid=builders.lattice("sag", origin=(0.1, 0.0)))
COARSE = replace(AX, grid=builders.lattice("iso", low=60.0))


@pytest.mark.parametrize(
    ("images", "fitted", "words"),
    [
        ((SAG,), BOTH, "it was fitted to sub-01/anat/sub-01_acq-ax_T2starw.nii.gz as T2StarAx"),
        ((MOVED, AX), BOTH, "sub-01_acq-sag_T2w.nii.gz had another lattice"),
        ((SAG, COARSE), BOTH, "sub-01_acq-ax_T2starw.nii.gz had another lattice"),
        ((SAG, AX), geometry(("STIR", SAG), ("T2StarAx", AX)), "as STIR, which this run does not use"),
        ((SAG, AX), geometry(("T2Sag", SAG), spacing=1.0), "its voxels are 1 mm wide, the recipe's 0.5 mm"),
        ((SAG, AX), geometry(("T2Sag", SAG), shape=(64, 48, 90)), "its window is (64, 48)"),
        ((SAG, AX), replace(BOTH, frame="box"), "its frame is box"),
    ],
)
def test_another_sessions_geometry_is_refused(images, fitted, words, earlier):
    plan = with_geometry(plan_of(*images), earlier(fitted), RECIPE)
    assert plan.anchor is None
    assert plan.geometry == ""
    assert words in plan.refusal
    assert plan.refusal.count("leave --geometry out") == 1


def test_a_model_that_needs_a_sequence(earlier):
    folder = earlier(geometry(("T2StarAx", AX)))
    plan = with_geometry(plan_of(SAG, AX), folder, RECIPE, needs_anchor="T2Sag")
    assert "no place for T2Sag, which this model needs" in plan.refusal


def test_a_transform_that_is_none_is_refused(earlier):
    data = BOTH.to_json()
    data["slabs"][0]["xfm"][0][1] = 3.0
    folder = earlier(json.dumps(data))
    assert "slab transform is not rigid" in with_geometry(plan_of(SAG, AX), folder, RECIPE).refusal


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 1}', '{"version": 99}', "[" * 100_000, '{"a": ' * 70 + "1" + "}" * 70]
)
def test_files_that_are_no_geometry(text, earlier):
    folder = earlier(text)
    with pytest.raises(DataError, match="leave --geometry out"):
        read_geometry(find_geometry(folder, subject="01", session=None))
    plan = with_geometry(plan_of(SAG, AX), folder, RECIPE)
    assert "sub-01_geometry.json" in plan.refusal
    assert plan.refusal.count("leave --geometry out") == 1
