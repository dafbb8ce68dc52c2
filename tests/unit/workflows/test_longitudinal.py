"""Changes over time from output folders: fates, refusals, what is missing, and alignments kept."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from timed_sessions import compare_or_die, compare_slowly_or_die, straight_geometry, write_timed_session

from bids_scseg.bids.timepoints import SessionFiles
from bids_scseg.bids.write import write_image, write_json
from bids_scseg.measure.cohort import build
from bids_scseg.preprocess.realign import Realignment
from bids_scseg.workflows import longitudinal
from bids_scseg.workflows import pair as pair_module
from bids_scseg.workflows.group import find_outputs, write_group
from bids_scseg.workflows.longitudinal import CACHE, compare_sessions
from bids_scseg.workflows.pair import PairJob, TimedSession

STAYS, GROWS, GONE = (0.0, -2.0, 90.0, 3.0), (2.0, 0.0, 60.0, 2.5), (-2.0, 1.0, 30.0, 2.5)
EIGHT = range(8)
GROWN, COMES = (2.0, 0.0, 60.0, 3.6), (0.0, 2.0, 45.0, 2.5)


@pytest.fixture
def out(tmp_path):
    write_timed_session(tmp_path, "sub-01_ses-1", [STAYS, GROWS, GONE])
    write_timed_session(tmp_path, "sub-01_ses-2", [STAYS, GROWN, COMES], up=17.0)
    return tmp_path


def compared(out, **options):
    outputs = find_outputs(out)
    return compare_sessions(out, build(outputs), outputs, **options)


def fates(changes):
    return {
        (row["lesions_before"], row["lesions_after"]): row["fate"]
        for row in changes.lesions.replace({np.nan: None}).to_dict("records")
    }


def add_image(out, label, up=0.0, *, seed=0):
    """The anchor as the participant level fuses it: noise is enough where nothing is registered."""
    grid = straight_geometry(up=up).fused_grid("T2Sag")
    data = np.random.default_rng(seed).normal(100, 10, grid.shape).astype(np.float32)
    subject, session = label.split("_")
    write_image(
        out, f"{subject}/{session}/anat/{label}_desc-preproc_T2w.nii.gz", data, grid=grid, metadata={}
    )


def test_without_images_levels_bring_sessions_together(out):
    changes = compared(out)
    assert fates(changes) == {
        ("1", "1"): "stable", ("2", "2"): "enlarged", (None, "3"): "new", ("3", None): "resolved",
    }  # fmt: skip
    row = changes.pairs.iloc[0]
    assert (row["state"], row["alignment"], row["order"]) == ("compared", "levels", "labels")
    assert "image of the anchor" in row["reason"]
    assert (row["new"], row["resolved"], row["enlarged"], row["stable"]) == (1, 1, 1, 1)
    # Balls of radius 3, 2.5, 2.5 and 3, 3.6, 2.5 mm.
    assert row["lesion_volume_change_mm3"] == pytest.approx(4 / 3 * np.pi * (3.6**3 - 2.5**3), abs=1e-3)
    assert row["lesion_volume_change_ci_low_mm3"] < row["lesion_volume_change_mm3"]
    assert row["cord_area_change_mm2"] == pytest.approx(17.0)
    lone = changes.lesions.set_index("fate")
    assert lone.loc["new", "other_probability"] == pytest.approx(0.1, abs=1e-6)
    assert np.isnan(lone.loc["stable", "other_probability"])
    assert lone.loc["stable", "shift_mm"] < 0.1
    assert changes.trajectories == {"sub-01": (("sub-01_ses-1", None), ("sub-01_ses-2", None))}
    assert changes.flags == ()


def test_time_runs_both_ways(out, tmp_path_factory):
    other = tmp_path_factory.mktemp("reversed")
    write_timed_session(other, "sub-01_ses-2", [STAYS, GROWS, GONE])
    write_timed_session(other, "sub-01_ses-1", [STAYS, GROWN, COMES], up=17.0)
    forth, back = compared(out), compared(other)
    assert fates(back) == {
        ("1", "1"): "stable", ("2", "2"): "shrunken", ("3", None): "resolved", (None, "3"): "new",
    }  # fmt: skip
    here, there = forth.pairs.iloc[0], back.pairs.iloc[0]
    assert there["lesion_volume_change_mm3"] == pytest.approx(-here["lesion_volume_change_mm3"])
    assert there["lesion_volume_z"] == pytest.approx(-here["lesion_volume_z"])


def test_what_one_session_did_not_scan_is_not_examined(tmp_path):
    write_timed_session(tmp_path, "sub-01_ses-1", [STAYS, GONE])
    write_timed_session(tmp_path, "sub-01_ses-2", [STAYS], low=50.0)
    changes = compared(tmp_path)
    assert fates(changes) == {("1", "1"): "stable", ("2", None): "not examined"}
    row = changes.pairs.iloc[0]
    assert row["lesion_volume_change_mm3"] == pytest.approx(0)  # the other lesion does not count
    assert row["volume_basis"] == "examined by both"


def test_dates_order_sessions_and_give_changes_per_year(out, tmp_path_factory):
    raw = tmp_path_factory.mktemp("raw")
    (raw / "sub-01").mkdir()
    (raw / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-1\t1900-07-01T10:00:00\nses-2\t1900-01-01T10:00:00\n"
    )
    changes = compared(out, dataset=raw)
    row = changes.pairs.iloc[0]
    assert (row["session_before"], row["session_after"], row["order"]) == ("ses-2", "ses-1", "dates")
    assert row["days"] == pytest.approx(181)
    assert row["lesion_volume_change_mm3_per_year"] == pytest.approx(
        row["lesion_volume_change_mm3"] * 365.25 / 181
    )
    assert changes.trajectories["sub-01"][1] == ("sub-01_ses-1", pytest.approx(181 / 365.25, abs=1e-4))


def test_sessions_measured_otherwise_are_refused(out):
    write_timed_session(out, "sub-01_ses-2", [STAYS], changes={"threshold": 0.3})
    changes = compared(out)
    row = changes.pairs.iloc[0]
    assert row["state"] == "refused"
    assert row["reason"] == "measured otherwise: different threshold"
    assert np.isnan(row["lesion_volume_change_mm3"])
    assert not len(changes.lesions)
    assert "1 of 1 pairs" in changes.flags[0]


def test_a_reader_on_one_side_only_is_said(out):
    write_timed_session(out, "sub-01_ses-2", [STAYS], up=17.0, changes={"mask_origin": "manual"})
    row = compared(out).pairs.iloc[0]
    assert row["state"] == "compared"
    if row["reason"] is not None:  # where the session table knows who decided
        assert "image of the anchor" in row["reason"]


def test_without_images_and_levels_only_totals_are_compared(out):
    write_timed_session(out, "sub-01_ses-2", [STAYS], anatomical=False)
    changes = compared(out)
    row = changes.pairs.iloc[0]
    assert (row["state"], row["alignment"], row["volume_basis"]) == ("totals only", "none", "all")
    assert row["lesion_volume_after_mm3"] == pytest.approx(4 / 3 * np.pi * 27)
    assert changes.pairs["new"].isna().all()
    assert not len(changes.lesions)


@pytest.mark.parametrize("pattern", ["*_geometry.json", "*_dseg.nii.gz"])
def test_missing_files_leave_totals(out, pattern):
    next((out / "sub-01/ses-2/anat").glob(pattern)).unlink()
    row = compared(out).pairs.iloc[0]
    assert row["state"] == "totals only"
    assert "sub-01_ses-2 has no" in row["reason"]


def test_two_sessions_without_lesions_need_no_alignment(tmp_path):
    for session in ("1", "2"):
        write_timed_session(tmp_path, f"sub-01_ses-{session}", [])
    changes = compared(tmp_path)
    row = changes.pairs.iloc[0]
    assert (row["state"], row["alignment"], row["lesion_volume_change_mm3"]) == ("compared", "not needed", 0)
    assert not (tmp_path / CACHE).exists()


def test_alignments_are_kept_by_content(out, monkeypatch):
    add_image(out, "sub-01_ses-1")
    add_image(out, "sub-01_ses-2", up=17.0, seed=1)
    calls = []
    up = np.eye(4)
    up[2, 3] = 17.0

    def stand_in(first, second, *, seed):
        calls.append((first.origin_mm[2], second.origin_mm[2]))
        return Realignment(xfm=up, accepted=True, registered=True, reason="registered", similarity_after=0.9)

    monkeypatch.setattr(pair_module, "realign", stand_in)
    first = compared(out)
    assert calls == [(100.0, 117.0)]
    again = compared(out)
    assert len(calls) == 1
    assert first.pairs.equals(again.pairs)
    assert first.lesions.equals(again.lesions)
    assert first.pairs.iloc[0]["alignment"] == "registration"
    assert first.pairs.iloc[0]["similarity"] == 0.9
    assert set(fates(first).values()) == {"stable", "enlarged", "new", "resolved"}
    add_image(out, "sub-01_ses-2", up=17.0, seed=2)  # another image
    compared(out)
    assert len(calls) == 2
    assert len(json.loads((out / CACHE).read_text())) == 1
    write_json(out, CACHE, {"x": {"xfm": "nonsense"}})
    compared(out)
    assert len(calls) == 3


def test_worker_processes_find_the_same(out):
    """Images on another lattice than the geometry's: each alignment is asked for and refused at once."""
    for label, up in (("sub-02_ses-1", 0.0), ("sub-02_ses-2", 17.0)):
        write_timed_session(out, label, [STAYS, GROWS], up=up)
    for label in ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"):
        add_image(out, label, up=5.0)
    alone, together = compared(out), compared(out, workers=2)
    assert together.pairs.equals(alone.pairs)
    assert together.lesions.equals(alone.lesions)
    assert all("another lattice" in reason for reason in together.pairs["reason"])
    assert list(together.pairs["alignment"]) == ["levels", "levels"]


def test_a_killed_worker_costs_its_own_pair_only(out, monkeypatch):
    """Images on another lattice than the geometry's, as above."""
    labels = [f"sub-0{who}_ses-{session}" for who in (1, 2, 3, 4) for session in (1, 2)]
    for label in labels[2:]:
        write_timed_session(out, label, [STAYS, GROWS])
    for label in labels:
        add_image(out, label, up=5.0)
    monkeypatch.setattr(longitudinal, "compare_pair", compare_or_die)
    table = compared(out, workers=2).pairs.set_index("participant_id")
    assert list(table["state"]) == ["compared", "totals only", "compared", "compared"]
    assert table.loc["sub-02", "reason"].startswith("the worker was killed")
    assert table.loc["sub-02", "lesion_volume_after_mm3"] > 0
    assert list(table["alignment"])[0::2] == ["levels", "levels"]


def test_a_refused_registration_falls_back_to_levels_and_says_so(out, monkeypatch):
    add_image(out, "sub-01_ses-1")
    add_image(out, "sub-01_ses-2", up=17.0, seed=1)
    refused = Realignment(reason="the images are not alike (correlation 0.01, from 0.4)")
    monkeypatch.setattr(pair_module, "realign", lambda *_, seed: refused)
    row = compared(out).pairs.iloc[0]
    assert (row["state"], row["alignment"]) == ("compared", "levels")
    assert "not alike" in row["reason"]


def test_a_registration_that_fails_in_any_way_costs_the_alignment_only(out, monkeypatch):
    add_image(out, "sub-01_ses-1")
    add_image(out, "sub-01_ses-2", up=17.0, seed=1)

    def fail(*_, seed):
        raise ValueError("filename does not exist!")  # as ANTs does

    monkeypatch.setattr(pair_module, "realign", fail)
    row = compared(out).pairs.iloc[0]
    assert (row["state"], row["alignment"]) == ("compared", "levels")
    assert "could not be registered: filename does not exist!" in row["reason"]


@pytest.mark.parametrize("every", [1, 100])
def test_alignments_are_kept_when_the_run_is_ended(out, monkeypatch, every):
    """The third participant's registration is interrupted; those before it are not done again."""
    for who in (1, 2, 3):
        for session, up in ((1, 0.0), (2, 17.0)):
            write_timed_session(out, f"sub-0{who}_ses-{session}", [STAYS, GROWS], up=up)
            add_image(out, f"sub-0{who}_ses-{session}", up=up, seed=10 * who + session)
    kept = []

    def stand_in(first, second, *, seed):
        kept.append(len(json.loads((out / CACHE).read_text())) if (out / CACHE).exists() else 0)
        if len(kept) == 3:
            raise KeyboardInterrupt
        return Realignment(xfm=np.eye(4), accepted=True, registered=True, reason="registered")

    monkeypatch.setattr(pair_module, "realign", stand_in)
    monkeypatch.setattr(longitudinal, "SAVE_EVERY", every)
    with pytest.raises(KeyboardInterrupt):
        compared(out)
    assert kept == ([0, 1, 2] if every == 1 else [0, 0, 0])
    assert len(json.loads((out / CACHE).read_text())) == 2
    compared(out)
    assert len(kept) == 4
    assert len(json.loads((out / CACHE).read_text())) == 3


def test_a_killed_worker_makes_suspects_of_those_that_ran_with_it_only(monkeypatch):
    """Two of eight pairs run at once: no more than two are compared alone, the others in a new pool."""
    monkeypatch.setattr(longitudinal, "compare_pair", compare_slowly_or_die)
    pools = []
    make = longitudinal._pool
    monkeypatch.setattr(longitudinal, "_pool", lambda workers: pools.append(workers) or make(workers))
    jobs = {who: PairJob(sessions=(empty(f"sub-0{who}_ses-1"), empty(f"sub-0{who}_ses-2"))) for who in EIGHT}
    found = dict(longitudinal._each(jobs, 2))
    assert {who: one.state for who, (one, _) in found.items()} == {
        who: "totals only" if who == 2 else "compared" for who in EIGHT
    }
    assert pools[:2] == [2, 2]
    assert len(pools) <= 4


def empty(label):
    return TimedSession(files=SessionFiles(label=label), sizes={}, centres={})


def test_failed_sessions_are_passed_over(out):
    write_timed_session(out, "sub-01_ses-3", [STAYS])
    (out / "group").mkdir()
    (out / "group/ratings.tsv").write_text(
        "participant_id\tsession_id\trating\tnote\trated\nsub-01\tses-2\tfail\t\t\n"
    )
    write_group(out, facts={})
    with (out / "group/session_changes.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["session_before"], row["session_after"]) for row in rows] == [("ses-1", "ses-3")]


def test_tables_have_dictionaries_and_a_cohort_without_repeats_empty_ones(tmp_path):
    write_timed_session(tmp_path, "sub-01", [STAYS])
    write_timed_session(tmp_path, "sub-02_ses-1", [STAYS])
    write_group(tmp_path, facts={})
    for name in ("lesion_changes", "session_changes"):
        table = (tmp_path / f"group/{name}.tsv").read_text().splitlines()
        assert len(table) == 1
        assert table[0].split("\t") == list(json.loads((tmp_path / f"group/{name}.json").read_text()))
    assert "No participant has two sessions that count" in (tmp_path / "group.html").read_text()
