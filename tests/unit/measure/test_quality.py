"""Quality of a session's images: contrast, noise, areas, and what the fit says."""

from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.measure.quality import quality_columns, quality_row, scanner_row
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan
from bids_scseg.space.grid import Grid

NAMES = ("T2Sag", "T2Ax")
FIT = {
    "sequences": [
        {
            "name": "T2Sag", "residual_mm": 0.2, "covered_mm": 80.0, "extrapolated_share": 0.25,
            "seam_mm": [0.4, 1.7, None], "edge_share": [0.0, 0.1],
        }
    ]
}  # fmt: skip


@pytest.fixture
def session(make_geometry, round_cord):
    """Cord of signal 1 in fluid of signal 4, noise of 0.1, seen by T2Sag alone."""
    geometry = make_geometry(slices=80)
    cord = round_cord(geometry)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, *cord.shape))
    image = (np.where(cord > 0, 1.0, 4.0) + noise).astype(np.float32)
    coverage = np.ones(image.shape, bool)
    coverage[1] = False
    return {"image": image, "coverage": coverage, "cord": cord, "geometry": geometry}


def row(session, *, labels=None, fit=FIT):
    labels = np.zeros(session["cord"].shape, np.int32) if labels is None else labels
    measures = {"cord_length_mm": 40.0, "T2Sag_examined_mm": 30.0, "T2Ax_examined_mm": 0.0}
    return quality_row(
        session["image"], labels, coverage=session["coverage"], cord=session["cord"],
        geometry=session["geometry"], sequences=NAMES, fit=fit, measures=measures,
    )  # fmt: skip


def test_contrast_and_noise_of_a_known_image(session):
    found = row(session)
    assert found["T2Sag_cord_contrast"] == pytest.approx(-3.0, abs=0.02)
    # A Gaussian of sigma 3 voxels leaves all but 1 % of white noise.
    assert found["T2Sag_cord_noise"] == pytest.approx(0.1, rel=0.05)
    assert found["T2Sag_cord_cnr"] == pytest.approx(30, rel=0.06)
    assert found["T2Sag_coverage"] == pytest.approx(0.75)


def test_lesions_do_not_count_as_cord(session):
    labels = np.zeros(session["cord"].shape, np.int32)
    labels[20:28, 20:28, 20:60] = 1
    session["image"][:, labels > 0] = 3.0
    with_lesion = row(session, labels=labels)
    assert with_lesion["T2Sag_cord_contrast"] == pytest.approx(-3.0, abs=0.03)


def test_an_absent_sequence_has_no_quality(session):
    found = row(session)
    absent = {name: value for name, value in found.items() if name.startswith("T2Ax_")}
    assert set(absent.values()) == {None}


def test_fit_numbers_are_the_worst_of_each_sequence(session):
    found = row(session)
    assert found["T2Sag_centerline_residual_mm"] == 0.2
    assert found["T2Sag_extrapolated_mm"] == 20.0
    assert found["T2Sag_seam_mismatch_mm"] == 1.7
    assert found["T2Sag_edge_share"] == 0.1


def test_an_odd_piece_of_the_cord_is_measured(session, round_cord):
    found = row(session)
    assert found["cord_area_mm2"] == pytest.approx(np.pi * 25, rel=0.03)
    assert found["cord_area_odd_mm"] == 0
    session["cord"][:, :, 30:40] = round_cord(session["geometry"], radius=7.0)[:, :, 30:40]  # twice the area
    assert row(session)["cord_area_odd_mm"] == pytest.approx(5.0)


def test_without_a_cord_nothing_is_known(session):
    session["cord"][:] = 0
    found = row(session)
    assert found["cord_area_mm2"] is None
    assert found["T2Sag_cord_cnr"] is None


def test_scanner_and_voxels_come_from_the_anchor_and_each_header():
    def file(name, spacing, **sidecar):
        grid = Grid(shape=(10, 10, 10), affine=np.diag([*spacing, 1.0]))
        return ImageFile(
            path=f"/x/{name}", relative=name, entities=(), suffix="T2w", grid=grid,
            sidecar=tuple(sidecar.items()),
        )  # fmt: skip

    plan = Plan(
        subject="1", session=None, dataset="x", recipe="r", missing=(), anchor="T2Sag",
        sequences=(
            SequencePlan(name="T2Ax", files=(file("b", (0.5, 0.5, 4.0), Manufacturer="GE"),)),
            SequencePlan(
                name="T2Sag",
                files=(file("a", (3.3, 0.5, 0.5), Manufacturer=" Siemens ", MagneticFieldStrength=3),),
            ),
        ),
    )  # fmt: skip
    found = scanner_row(plan)
    assert found["manufacturer"] == "Siemens"
    assert found["scanner_model"] is None
    assert found["field_strength_t"] == 3.0
    assert found["T2Sag_voxel_mm"] == "0.5 x 0.5 x 3.3"
    assert found["T2Ax_voxel_mm3"] == 1.0


def test_all_numbers_have_columns(session):
    names = {column.name for column in quality_columns(NAMES)}
    assert set(row(session)) <= names
