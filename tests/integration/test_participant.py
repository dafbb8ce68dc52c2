"""The participant level, end to end, on phantoms of a few seconds."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from integration.checks import (
    call,
    foreign_addresses,
    page_text,
    status,
    unfinished,
    validator_issues,
)
from integration.cohorts import (
    AXIAL,
    LOWER,
    SHIFT_MM,
    TWO_SLABS,
    UPPER,
    add_session,
    describe,
    image_path,
    mask_path,
    rewrite,
)
from phantoms import world_points

ANCHOR_DSEG = "sub-01/ses-1/anat/sub-01_ses-1_acq-sag_seg-lesions_dseg"
COMPUTED = (
    "cord/*/cord.json", "lesions/prepare/geometry.json", "lesions/segment/probability.npy",
    "lesions/measure/labels.npy",
)  # fmt: skip


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_dseg(path):
    return np.asarray(nib.load(path).dataobj)


def stamps(out, label):
    """When each result in a session's work folder was computed, by pattern."""
    root = out / "work" / label / "session"
    return {pattern: [path.stat().st_mtime_ns for path in sorted(root.glob(pattern))] for pattern in COMPUTED}


def results(out, subject="sub-02"):
    """Content of a subject's images and tables, apart from gzip headers."""
    found = {}
    for path in sorted((out / subject).rglob("*")):
        if path.name.endswith(".nii.gz"):
            found[path.name] = gzip.decompress(path.read_bytes())
        elif path.suffix == ".tsv":
            found[path.name] = path.read_bytes()
    return found


# -- one good run ----------------------------------------------------------------------------------


def test_it_ends_well_and_says_so(good):
    assert good.result.code == 0, good.result.err
    assert "3 of 3 sessions done" in good.result.err
    assert good.result.out == ""
    rows = status(good.out)
    assert list(rows) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    for row in rows.values():
        assert row["state"] == "done"
        assert row["cause"] == "n/a"
        assert float(row["seconds"]) > 0
        assert row["device"].startswith("CPU")
    assert unfinished(good.out) == []


def test_outputs_bear_the_names_of_the_tree(good):
    anat = good.out / "sub-01" / "ses-1" / "anat"
    names = {path.name.removeprefix("sub-01_ses-1_") for path in anat.iterdir()}
    segmentations = {
        f"acq-sag_{middle}label-lesion_{kind}"
        for middle in ("", "chunk-1_", "chunk-2_")
        for kind in ("probseg", "mask")
    }
    expected = {f"{name}.nii.gz" for name in segmentations} | {
        "acq-sag_seg-lesions_dseg.nii.gz",
        "acq-sag_seg-lesions_dseg.tsv",
        "acq-sag_seg-lesions_dseg.json",
        "acq-sag_chunk-1_seg-lesions_dseg.nii.gz",
        "acq-sag_desc-preproc_T2w.nii.gz",
        "acq-sag_chunk-1_label-SC_desc-T2w_mask.nii.gz",
        "acq-sag_chunk-2_label-SC_desc-T2w_mask.nii.gz",
        "acq-ax_label-SC_desc-T2starw_mask.nii.gz",
        "acq-ax_label-lesion_desc-T2starw_mask.nii.gz",  # --output-spaces all
        "acq-ax_seg-lesions_desc-T2starw_dseg.nii.gz",
        "geometry.json",
        "summary.json",
    }
    assert expected <= names
    for name in ("dataset_description.json", "descriptions.tsv", "README.md", "CITATION.md", ".bidsignore"):
        assert (good.out / name).is_file()
    assert (good.out / "logs" / "methods.md").read_text().startswith("#")
    assert list((good.out / "logs").glob("run-*.toml"))


def test_results_lie_on_the_grids_of_their_sources(good):
    anat = good.out / "sub-01" / "ses-1" / "anat"
    for rest, grid in {
        "acq-sag_chunk-1_label-SC_desc-T2w_mask": UPPER,
        "acq-sag_chunk-1_label-lesion_mask": UPPER,
        "acq-sag_chunk-2_label-lesion_probseg": LOWER,
        "acq-ax_label-SC_desc-T2starw_mask": AXIAL,
        "acq-ax_seg-lesions_desc-T2starw_dseg": AXIAL,
    }.items():
        image = nib.load(anat / f"sub-01_ses-1_{rest}.nii.gz")
        assert image.shape == grid.shape
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
    fused = nib.load(f"{good.out / ANCHOR_DSEG}.nii.gz")
    image = nib.load(anat / "sub-01_ses-1_acq-sag_desc-preproc_T2w.nii.gz")
    assert fused.shape == image.shape
    np.testing.assert_allclose(fused.affine, image.affine)


def test_the_given_masks_come_back(good):
    written = read_dseg(good.out / "sub-01/ses-1/anat/sub-01_ses-1_acq-ax_label-SC_desc-T2starw_mask.nii.gz")
    given = read_dseg(
        good.bids / "derivatives/labels/sub-01/ses-1/anat/sub-01_ses-1_acq-ax_T2starw_label-SC_seg.nii.gz"
    )
    assert 2 * (written * given).sum() / (written.sum() + given.sum()) > 0.97


def test_the_numbers_in_images_are_those_of_the_table(good):
    table = pd.read_csv(f"{good.out / ANCHOR_DSEG}.tsv", sep="\t")
    assert len(table) > 0, "the tiny model must find something for this folder to test anything"
    numbers = set(table["index"])
    assert len(numbers) == len(table)
    fused = read_dseg(f"{good.out / ANCHOR_DSEG}.nii.gz")
    assert set(np.unique(fused)) - {0} == numbers
    anat = good.out / "sub-01" / "ses-1" / "anat"
    for path in anat.glob("*_dseg.nii.gz"):
        assert set(np.unique(read_dseg(path))) - {0} <= numbers
    mask = read_dseg(anat / "sub-01_ses-1_acq-sag_label-lesion_mask.nii.gz")
    np.testing.assert_array_equal(mask > 0, fused > 0)
    voxel_mm3 = float(np.prod(nib.load(f"{good.out / ANCHOR_DSEG}.nii.gz").header.get_zooms()))
    big = table[table["volume_mm3"] > 100]
    for index, volume in zip(big["index"], big["volume_mm3"], strict=True):
        assert (fused == index).sum() * voxel_mm3 == pytest.approx(volume, rel=0.15)


def test_the_misplaced_slab_is_found(good):
    geometry = read_json(good.out / "sub-01/ses-1/anat/sub-01_ses-1_geometry.json")
    lower = next(slab for slab in geometry["slabs"] if slab["key"] == "T2Sag" and slab["index"] == 1)
    middle = np.array([*LOWER.to_world((np.array(LOWER.shape) - 1) / 2), 1.0])
    moved = np.asarray(lower["xfm"]) @ middle - middle
    assert moved[1] == pytest.approx(SHIFT_MM, abs=0.4)


def test_sources_resolve(good):
    checked = 0
    for path in good.out.glob("sub-*/**/*.json"):
        data = read_json(path)
        uris = [*data.get("Sources", []), data.get("SpatialReference", "orig")]
        for uri in (uri for uri in uris if uri != "orig"):
            dataset, relative = uri.removeprefix("bids:").split(":", 1)
            root = {"raw": good.bids, "": good.out}[dataset]
            assert (root / relative).is_file(), f"{uri} in {path}"
            checked += 1
    assert checked > 30


def test_reports_stand_alone_and_name_every_image(good):
    for label in ("sub-01_ses-1", "sub-01_ses-2", "sub-02"):
        page = good.out / f"{label}.html"
        assert foreign_addresses(page) == []
        assert f"{label}_acq-ax_T2starw.nii.gz" in page_text(page)


def test_validator_finds_nothing_after_the_group_level(again):
    result = call("-", again.out, "group")
    assert result.code == 0, result.err
    assert "3 sessions" in result.err
    assert foreign_addresses(again.out / "group.html") == []
    sessions = pd.read_csv(again.out / "group" / "sessions.tsv", sep="\t", dtype=str)
    assert sessions["participant_id"].tolist() == ["sub-01", "sub-01", "sub-02"]
    table = pd.read_csv(f"{again.out / ANCHOR_DSEG}.tsv", sep="\t")
    lesions = pd.read_csv(again.out / "group" / "lesions.tsv", sep="\t", dtype=str)
    assert ((lesions["participant_id"] == "sub-01") & (lesions["session_id"] == "ses-1")).sum() == len(table)
    issues = validator_issues(again.out)
    assert [issue for issue in issues if issue.get("severity") == "error"] == []
    assert "TSV_COLUMN_TYPE_REDEFINED" not in {issue["code"] for issue in issues}


# -- running again ---------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_brings_back_what_was_removed(run, again):
    before, content = stamps(again.out, "sub-02"), results(again.out)
    gone = again.out / "sub-02/anat/sub-02_acq-ax_label-lesion_mask.nii.gz"
    gone.unlink()
    (again.out / "sub-02.html").unlink()
    result = run(
        again.bids, again.out, "-d", again.labels, "--output-spaces", "all", "--participant-label", "02"
    )
    assert result.code == 0, result.err
    assert stamps(again.out, "sub-02") == before
    assert results(again.out) == content
    assert (again.out / "sub-02.html").is_file()


def test_a_new_threshold_measures_again_and_segments_not(run, again):
    before = stamps(again.out, "sub-02")
    result = run(
        again.bids, again.out, "-d", again.labels, "--participant-label", "02", "--threshold", "0.999"
    )
    assert result.code == 0, result.err
    after = stamps(again.out, "sub-02")
    assert {pattern for pattern in COMPUTED if after[pattern] != before[pattern]} == {COMPUTED[-1]}
    anat = again.out / "sub-02" / "anat"
    summary = read_json(anat / "sub-02_summary.json")
    assert (summary["threshold"], summary["lesion_count"]) == (0.999, 0)
    assert not read_dseg(anat / "sub-02_acq-ax_label-lesion_mask.nii.gz").any()
    assert len((anat / "sub-02_acq-ax_seg-lesions_dseg.tsv").read_text().splitlines()) == 1


def test_another_smallest_lesion_measures_again_and_segments_not(run, again):
    """The tiny model's own rule is 20 mm³."""
    one = ("-d", again.labels, "--participant-label", "02")
    anat, before = again.out / "sub-02" / "anat", stamps(again.out, "sub-02")
    first = read_json(anat / "sub-02_summary.json")
    assert first["run"]["min_volume_mm3"] == 20.0
    assert run(again.bids, again.out, *one, "--min-volume", "1e6").code == 0
    after = stamps(again.out, "sub-02")
    assert {pattern for pattern in COMPUTED if after[pattern] != before[pattern]} == {COMPUTED[-1]}
    last = read_json(anat / "sub-02_summary.json")
    assert (first["lesion_count"] > 0, last["lesion_count"]) == (True, 0)
    assert read_json(anat / "sub-02_acq-ax_label-lesion_mask.json")["MinimumVolume"] == 1e6
    page = page_text(again.out / "sub-02.html")
    assert "lesions under 1e+06 mm³ were dropped" in page
    assert "lesions under 1e+06 mm³ were dropped" in (again.out / "logs" / "methods.md").read_text()


def test_a_seed_threshold_drops_lesions_that_nowhere_reach_it_and_is_told(run, again):
    one = ("-d", again.labels, "--participant-label", "02")
    anat, before = again.out / "sub-02" / "anat", stamps(again.out, "sub-02")
    first = read_json(anat / "sub-02_summary.json")
    assert run(again.bids, again.out, *one, "--seed-threshold", "0.9999").code == 0
    after = stamps(again.out, "sub-02")
    assert {pattern for pattern in COMPUTED if after[pattern] != before[pattern]} == {COMPUTED[-1]}
    summary = read_json(anat / "sub-02_summary.json")
    assert (first["run"]["seed_threshold"], summary["run"]["seed_threshold"]) == (0.0, 0.9999)
    assert (first["lesion_count"] > 0, summary["lesion_count"]) == (True, 0)
    assert read_json(anat / "sub-02_acq-ax_label-lesion_mask.json")["SeedThreshold"] == 0.9999
    page = page_text(again.out / "sub-02.html")
    assert "nowhere reached 0.9999 were dropped" in page and "where it reaches 0.9999 somewhere" in page


def test_masks_that_stop_early_are_told_wherever_results_are(run, tmp_path):
    bids = describe(tmp_path / "bids")
    add_session(bids, "sub-01", TWO_SLABS)
    for scan in TWO_SLABS:  # masks from 10 to 30 mm above the middle of a session that shows 90 mm
        heights = world_points(scan.grid)[..., 2]
        rewrite(
            mask_path(bids, "sub-01", scan.rest),
            lambda mask, z=heights: (mask * ((z > 10) & (z < 30))).astype(np.uint8),
        )
    out = tmp_path / "out"
    result = run(bids, out, "-d", f"labels={bids / 'derivatives' / 'labels'}")
    assert result.code == 0, result.err
    summary = read_json(out / "sub-01" / "anat" / "sub-01_summary.json")
    assert summary["cord_length_mm"] < 25 and summary["not_examined_mm"] == 0
    assert summary["beyond_masks_mm"] == pytest.approx(70, abs=3)
    words = "T2Sag shows 90 mm along S-I, the cord masks reach over"
    assert words in summary["flags"]
    page = page_text(out / "sub-01.html")
    assert words in page
    assert "The images go on far beyond the cord masks; nothing was segmented there." in page
    assert "Read the serious warning" in page or "serious warnings first" in page


def test_reports_alone(run, again):
    before, log = stamps(again.out, "sub-02"), (again.out / "logs" / "sub-02.json").read_bytes()
    page = again.out / "sub-02.html"
    page.write_text("old")
    one = ("-d", again.labels, "--participant-label", "02", "--reports-only")
    result = run(again.bids, again.out, *one)
    assert result.code == 0, result.err
    assert "acq-ax_T2starw" in page_text(page)
    assert stamps(again.out, "sub-02") == before
    assert (again.out / "logs" / "sub-02.json").read_bytes() == log

    (again.out / "work" / "sub-02").rename(again.out / "elsewhere")
    page.write_text("old")
    result = run(again.bids, again.out, *one)
    assert result.code == 1
    assert "intermediate files of the session are gone" in result.err
    assert "--work-dir" in result.err
    assert page.read_text() == "old"


def test_work_folder_is_removed_on_request(run, good, tmp_path):
    out = tmp_path / "out"
    result = run(good.bids, out, "-d", good.labels, "--participant-label", "02", "--clean-workdir")
    assert result.code == 0, result.err
    assert not (out / "work").exists()
    assert set(results(out)) <= set(results(good.out))  # those of --output-spaces anchor
    assert all(results(good.out)[name] == content for name, content in results(out).items())


def test_a_session_that_another_run_works_on_is_left_alone(run, again):
    log = (again.out / "logs" / "sub-02.json").read_bytes()
    with (again.out / "logs" / ".sub-02.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(again.bids, again.out, "-d", again.labels, "--participant-label", "02")
    assert result.code == 75
    assert "another run is working on sub-02" in result.err
    assert (again.out / "logs" / "sub-02.json").read_bytes() == log
    assert "another run" not in page_text(again.out / "sub-02.html")


# -- choosing and looking --------------------------------------------------------------------------


def plan_of(run, cohort, out, *more):
    result = run(cohort, out, "--dry-run", "--json-plan", "-", *more)
    assert result.code == 0, result.err
    sessions = json.loads(result.out)["sessions"]
    return ["_".join(filter(None, [item["subject"], item["session"]])) for item in sessions]


def test_dry_run_shows_the_plan_and_writes_nothing(run, cohort, tmp_path):
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    result = run(cohort, out, "--dry-run", "-d", f"labels={cohort / 'derivatives' / 'labels'}")
    assert result.code == 0, result.err
    for words in (
        "sub-01_ses-1: anchor T2Sag",
        "slab 1 of 2",
        "your cord mask",
        "missing",
        "3 to be segmented",
    ):
        assert words in result.out
    assert not out.exists()
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


def test_filters_choose_sessions(run, cohort, tmp_path):
    out = tmp_path / "out"
    assert plan_of(run, cohort, out, "--session-label", "ses-2") == ["01_2"]
    assert plan_of(run, cohort, out, "--exclude-participant-label", "sub-01") == ["02"]
    assert plan_of(run, cohort, out, "--participant-label", "01", "--session-id", "1") == ["01_1"]


def test_unknown_participant(run, cohort, tmp_path):
    result = run(cohort, tmp_path / "out", "--participant-label", "99")
    assert result.code == 18
    assert "participants 99" in result.err
    assert "participants 01, 02" in result.err
    assert not (tmp_path / "out").exists()


def test_methods_text_alone(run, cohort, tmp_path):
    result = run(cohort, tmp_path / "out", "--boilerplate-only")
    assert result.code == 0
    assert "bids_scseg" in result.out
    assert "References" in result.out
    assert not (tmp_path / "out").exists()


# -- Spinal Cord Toolbox ---------------------------------------------------------------------------

STAND_IN = """#!{python}
import os, sys
from pathlib import Path
import nibabel as nib, numpy as np
if sys.argv[1] != "spinalcord" or sys.argv[2] != "-i" or sys.argv[4] != "-o":
    sys.exit(2)
image, out, mode = Path(sys.argv[3]), sys.argv[5], os.environ.get("STAND_IN", "ok")
if mode == "exit1":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
stem = image.name.removesuffix(".nii.gz")
mask = nib.load(next(Path({labels!r}).rglob(stem + "_label-SC_seg.nii.gz")))
data = np.asarray(mask.dataobj)
nib.save(nib.Nifti1Image((data * (mode != "empty")).astype(np.uint8), mask.affine), out)
"""


@pytest.fixture
def sct(cohort, tmp_path, monkeypatch):
    """A program that answers as ``sct_deepseg spinalcord`` of release 7.3 does."""
    tool = tmp_path / "bin" / "sct_deepseg"
    tool.parent.mkdir()
    tool.write_text(STAND_IN.format(python=sys.executable, labels=str(cohort / "derivatives" / "labels")))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return tool


def test_everything_in_processes_of_its_own_with_sct(sct, good, model, tmp_path):
    """The program as users start it; with the same masks, SCT's cords give the results of given ones."""
    out = tmp_path / "out"
    # The output folder by a relative path, as people type it; nodes work in folders of their own.
    command = [sys.executable, "-m", "bids_scseg", str(good.bids), out.name, "participant"]
    command += ["--model", str(model), "--cord", "sct", "--participant-label", "02", "--nprocs", "1"]
    done = subprocess.run(
        [*command, "--omp-nthreads", "1", "--output-spaces", "all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[1/1] sub-02: done in" in done.stderr
    assert "Traceback" not in done.stderr
    found, expected = results(out), results(good.out)
    name = "sub-02_acq-ax_label-lesion_probseg.nii.gz"
    one, other = (read_dseg(folder / "sub-02" / "anat" / name) for folder in (out, good.out))
    np.testing.assert_allclose(one, other, atol=1e-5)  # another process may sum in another order
    assert {**found, name: b""} == {**expected, name: b""}
    assert "sct_deepseg spinalcord" in page_text(out / "sub-02.html")


@pytest.mark.parametrize(
    ("mode", "state", "words"),
    [
        ("empty", "refused", "no spinal cord found"),
        ("exit1", "failed", "exit code 1: RuntimeError: it broke"),
    ],
)
def test_sct_without_a_cord(mode, state, words, sct, run, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", mode)
    out = tmp_path / "out"
    result = run(cohort, out, "--participant-label", "02", cord="sct")
    assert result.code == 1
    row = status(out)["sub-02"]
    assert row["state"] == state
    assert words in row["cause"]
    assert row["file"] == str(image_path(cohort, "sub-02", "acq-ax_T2starw"))
    assert row["remedy"] != "n/a"
    assert words in page_text(out / "sub-02.html")
    assert not (out / "sub-02").exists()


def test_sct_that_is_not_there(run, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("bids_scseg.interfaces.sct.find_sct", lambda: None)
    result = run(cohort, tmp_path / "out", cord="sct")
    assert result.code == 127
    assert "use --cord builtin" in result.err
    assert not (tmp_path / "out").exists()
