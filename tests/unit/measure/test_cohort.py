"""Cohort tables from files as the participant level leaves them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bids_scseg.errors import DataError
from bids_scseg.interfaces.cord import NETWORK
from bids_scseg.measure.cohort import KEY_COLUMNS, PARTICIPANT_COLUMNS, SessionOutputs, build
from bids_scseg.measure.covariates import Covariates
from bids_scseg.measure.lesions import lesion_columns
from bids_scseg.measure.schema import parse_frame, to_frame
from bids_scseg.measure.session import session_columns
from bids_scseg.report.methods import BY_HAND

NAMES = ("T2Sag", "STIR")


@pytest.fixture
def write(tmp_path):
    """Write one session's files; lesions are given by their volumes."""

    def make(subject, session=None, volumes=(), *, log=None, **measures):
        stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        rows = [
            {
                "index": number,
                "name": f"lesion-{number:02d}",
                "volume_mm3": volume,
                "level": "C3" if number == 1 else None,
                "arc_origin_anatomical": number == 1,
                "T2Sag_cnr": 2.5,
            }
            for number, volume in enumerate(volumes, start=1)
        ]
        lesions = tmp_path / f"{stem}_dseg.tsv"
        to_frame(rows, lesion_columns(NAMES)).to_csv(lesions, sep="\t", index=False, na_rep="n/a")
        row = {column.name: None for column in session_columns(NAMES)} | {
            "lesion_count": len(volumes),
            "lesion_volume_mm3": float(sum(volumes)),
            "lesion_load": sum(volumes) / 1000,
            "examined_length_mm": 100.0,
            "model": "cord-lesion",
            "threshold": 0.5,
            "arc_origin": "C2-C3 disc",
        }
        summary = tmp_path / f"{stem}_summary.json"
        summary.write_text(json.dumps({"measures": row | measures, "quality": {"x": 1}}))
        log_path = None
        if log is not None:
            log_path = tmp_path / f"{stem}.json"
            log_path.write_text(json.dumps(log))
        return SessionOutputs(
            subject=subject, session=session, lesions=lesions, summary=summary, log=log_path
        )

    return make


def test_long_tables(write):
    tables = build([write("02", None, (5.0, 7.0)), write("01", "b", ()), write("01", "a", (10.0,))])
    assert tables.sessions["participant_id"].tolist() == ["sub-01", "sub-01", "sub-02"]
    assert tables.sessions["session_id"].tolist()[:2] == ["ses-a", "ses-b"]
    assert tables.sessions["session_id"].isna().tolist() == [False, False, True]
    assert tables.sessions["lesion_count"].tolist() == [1, 0, 2]
    assert tables.lesions["volume_mm3"].tolist() == [10, 5, 7]
    assert tables.lesions["level"].isna().tolist() == [False, False, True]
    assert tables.lesions["arc_origin_anatomical"].tolist() == [True, True, False]
    assert tables.lesions["T2Sag_cnr"].tolist() == [2.5] * 3
    assert [c.name for c in KEY_COLUMNS] == list(tables.lesions.columns[:2])
    assert tables.failed == ()
    assert tables.flags == ()


def test_covariates_never_replace_who_a_session_is_or_how_it_ended(write):
    claims = {"participant_id": "sub-99", "session_id": "ses-z", "state": "failed"}
    tables = build([write("01", "a", (10.0,))], covariates=Covariates(participants={"sub-01": claims}))
    assert tables.sessions.loc[0, list(claims)].tolist() == ["sub-01", "ses-a", "done"]


def test_one_row_per_participant(write):
    tables = build([write("01", "a", (10.0,)), write("01", "b", (10.0, 20.0)), write("02", None, ())])
    people = tables.participants.set_index("participant_id")
    assert people.index.is_unique
    assert people.loc["sub-01", "sessions"] == 2
    assert people.loc["sub-01", ["first_session", "last_session"]].tolist() == ["ses-a", "ses-b"]
    assert people.loc["sub-01", "mean_lesion_count"] == 1.5
    assert people.loc["sub-01", "mean_lesion_load"] == pytest.approx(0.02)
    assert people.loc["sub-01", "last_lesion_load"] == pytest.approx(0.03)
    assert people.loc["sub-02", "mean_lesion_load"] == 0


def test_the_last_session_is_that_of_the_highest_number(write):
    tables = build([write("01", f"M{month}", (float(month),)) for month in (0, 12, 6)])
    assert tables.sessions["session_id"].tolist() == ["ses-M0", "ses-M6", "ses-M12"]
    person = tables.participants.iloc[0]
    assert (person["first_session"], person["last_session"]) == ("ses-M0", "ses-M12")
    assert person["last_lesion_load"] == pytest.approx(0.012)


def test_failed_sessions_are_listed_and_do_not_count_as_zero(write):
    failed = write("01", "b", log={"state": "failed", "cause": "no cord found", "remedy": "give a mask"})
    gone = SessionOutputs(subject="03", session="a")
    tables = build([write("01", "a", (10.0,)), failed, gone])
    assert tables.failed == (("sub-01_ses-b", "no cord found"), ("sub-03_ses-a", "outputs are missing"))
    assert tables.sessions["state"].tolist() == ["done", "failed", "incomplete"]
    assert tables.sessions["lesion_count"].isna().tolist() == [False, True, True]
    people = tables.participants.set_index("participant_id")
    assert people.loc["sub-01", ["sessions", "sessions_failed"]].tolist() == [1, 1]
    assert people.loc["sub-01", "mean_lesion_count"] == 1
    assert np.isnan(people.loc["sub-03", "mean_lesion_load"])
    assert "2 of 3 sessions have no results." in tables.flags


def test_mixed_models_and_origins_are_flagged(write):
    one = write("01", None, (1.0,), threshold=0.5)
    two = write("02", None, (1.0,), threshold=0.3, arc_origin="top of the prepared cord")
    flags = build([one, two]).flags
    assert len(flags) == 2
    assert "threshold: 0.3, 0.5" in flags[0]
    assert "different origins" in flags[1]


def test_every_column_is_described(write):
    tables = build([write("01", None, (1.0,))])
    for name in ("lesions", "sessions", "participants"):
        frame = getattr(tables, name)
        assert list(frame.columns) == list(tables.dictionaries[name])
    assert "T2Sag_cnr" in tables.dictionaries["lesions"]
    assert "STIR_examined_mm" in tables.dictionaries["sessions"]


def test_no_sessions():
    tables = build([])
    assert len(tables.sessions) == len(tables.lesions) == 0
    assert list(tables.participants.columns) == [column.name for column in PARTICIPANT_COLUMNS]


def test_bad_files_are_named(write, tmp_path):
    broken = write("01", None, ())
    broken.summary.write_text("{")
    with pytest.raises(DataError, match="sub-01_summary"):
        build([broken])
    broken.summary.write_text("[1]")
    with pytest.raises(DataError, match="not a JSON object"):
        build([broken])
    one = write("02", None, ())
    with pytest.raises(DataError, match="given twice: sub-02"):
        build([one, one])


def test_tables_survive_the_way_through_tsv(tmp_path):
    columns = lesion_columns(NAMES)
    frame = to_frame(
        [{"index": 1, "name": "lesion-01", "volume_mm3": 1.5, "arc_origin_anatomical": False}], columns
    )
    path = tmp_path / "t.tsv"
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a")
    text = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, na_values=["n/a"])
    pd.testing.assert_frame_equal(parse_frame(text, columns), frame)


def test_corrected_sessions_are_counted_and_older_summaries_are_the_models(write):
    cohort = build(
        [write("01", volumes=(4.0,)), write("02", mask_origin="manual"), write("03", mask_origin="mixed")]
    )
    assert cohort.sessions["mask_origin"].tolist() == ["model", "manual", "mixed"]
    (told,) = [flag for flag in cohort.flags if "corrected" in flag]
    assert told.startswith("In 2 of 3 sessions a reader corrected the lesions (mask_origin);")
    assert not any("corrected" in flag for flag in build([write("04")]).flags)


def test_voxel_sizes_are_groups_that_can_be_compared(write):
    sizes = ["0.469 x 0.469 x 3.3", "0.5 x 0.51 x 3.3", "1 x 1 x 1", None, "nonsense"]
    outputs = [
        write(f"{number:02d}", None, (1.0,), anchor="T2Sag", T2Sag_voxel_mm=size, T2Sag_cord_cnr=1.0)
        for number, size in enumerate(sizes)
    ]
    tables = build(outputs)
    found = tables.sessions["anchor_voxel"]
    assert found.tolist()[:3] == ["0.5 × 0.5 × 3.3 mm", "0.5 × 0.5 × 3.3 mm", "1 × 1 × 1 mm"]
    assert found.isna().tolist() == [False, False, False, True, True]
    assert "anchor_voxel" in [column.name for column in tables.covariates]
    twice = [
        write(f"{number:02d}", None, (float(number),), anchor="T2Sag", T2Sag_voxel_mm=size)
        for number, size in enumerate(["1 x 1 x 1", "0.5 x 0.5 x 3"] * 5)
    ]
    assert set(build(twice).comparisons["covariate"]) == {"anchor_voxel"}


def test_sessions_whose_cords_come_from_elsewhere_are_told_apart(write, tmp_path):
    def cords(*sources):
        paths = []
        for source in sources:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}_mask.json"
            path.write_text(json.dumps({"Description": f"Spinal cord, by {source}"}))
            paths.append(path)
        return tuple(paths)

    (tmp_path / "damaged_mask.json").write_text("[" * 100_000)
    sources = [
        cords(NETWORK, NETWORK), cords("given mask sub-01_label-SC_mask.nii.gz", NETWORK),
        cords(f"{BY_HAND} x.nii.gz"), cords("sct_deepseg spinalcord"), (tmp_path / "damaged_mask.json",), (),
    ]  # fmt: skip
    outputs = [replace(write(f"{number:02d}", None, ()), cords=paths) for number, paths in enumerate(sources)]
    tables = build(outputs)
    known = ["builtin", "builtin+given", "corrected", "sct"]
    assert tables.sessions["cord_source"].tolist()[:4] == known
    assert tables.sessions["cord_source"].isna().tolist()[4:] == [True, True]
    flags = [flag for flag in tables.flags if "cord_source" in flag]
    assert len(flags) == 1 and "builtin in 1, builtin+given in 1" in flags[0]
    assert not any("cord_source" in flag for flag in build(outputs[:1]).flags)


def test_another_cord_finder_is_another_stratum(write):
    logs = [
        {"state": "done", "run": {"cord_method": "builtin", "cord_sha256": letter * 64}} for letter in "aab"
    ]
    outputs = [write(f"{number:02d}", None, (), log=log) for number, log in enumerate(logs)]
    tables = build(outputs)
    assert tables.sessions["stratum"].tolist() == ["A", "A", "B"]
    assert any(flag.startswith("Sessions differ in cord_sha256") for flag in tables.flags)
