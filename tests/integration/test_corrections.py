"""Corrections come back: an edited mask takes the model's place, and the network does not run again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from integration.checks import Result, call, page_text, status, validator_issues
from scipy import ndimage

from bids_scseg.cli import tools
from bids_scseg.workflows.verification import verify_output

LABEL, ANAT = "sub-02", Path("sub-02") / "anat"
MASK = "sub-02_acq-ax_label-lesion_mask"
MANUAL = "sub-02_acq-ax_label-lesion_desc-manual_mask"
CORD, MANUAL_CORD = "sub-02_acq-ax_label-SC_desc-T2starw_mask", "sub-02_acq-ax_label-SC_desc-manual_mask"
NODES = ("cord/*/cord.json", "lesions/prepare/geometry.json", "lesions/segment/probability.npy")


def load(out: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(out / ANAT / f"{name}.nii.gz")
    return np.asarray(image.dataobj), image.affine


def put(path: Path, values: np.ndarray, affine: np.ndarray, dtype: type = np.uint8) -> Path:
    """Save as viewers do that write an sform alone."""
    image = nib.Nifti1Image(values.astype(dtype), affine)
    image.set_qform(None, code=0)
    image.set_sform(affine, code=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def sidecar(out: Path, name: str) -> dict[str, object]:
    return json.loads((out / ANAT / f"{name}.json").read_text())


def summary(out: Path) -> dict[str, object]:
    return sidecar(out, "sub-02_summary")


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / ANAT / "sub-02_acq-ax_seg-lesions_dseg.tsv", sep="\t")


def computed(out: Path) -> list[int]:
    """When the steps before measuring last ran."""
    root = out / "work" / LABEL / "session"
    return [path.stat().st_mtime_ns for pattern in NODES for path in sorted(root.glob(pattern))]


def edit(out: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """The model's mask without its largest lesion, with a block where none was; its affine; voxels added."""
    numbers, affine = load(out, "sub-02_acq-ax_seg-lesions_dseg")
    values = (numbers > 0).astype(np.uint8)
    values[numbers == np.bincount(numbers[numbers > 0]).argmax()] = 0
    cord = load(out, CORD)[0] > 0
    room = ndimage.binary_erosion(cord, structure=np.ones((3, 3, 1)))
    room &= ~ndimage.binary_dilation(numbers > 0, structure=np.ones((5, 5, 3)))
    where = np.argwhere(room)
    i, j, k = where[len(where) // 2]
    block = (slice(i - 1, i + 2), slice(j - 1, j + 2), slice(k, k + 1))
    assert not numbers[block].any()
    values[block] = 1
    return values, affine, 9


@pytest.fixture(scope="module")
def corrected(run, good, tmp_path_factory) -> tuple[Path, Result, list[int], np.ndarray]:
    """A finished session, its mask edited and saved beside it, run once more."""
    out = Path(shutil.copytree(good.out, tmp_path_factory.mktemp("corrected") / "out"))
    values, affine, _ = edit(out)
    put(out / ANAT / f"{MANUAL}.nii.gz", values, affine, np.float64)
    before = computed(out)
    result = run(good.bids, out, "-d", good.labels, "--participant-label", "02")
    return out, result, before, values


def test_tables_and_masks_are_the_readers_and_the_network_did_not_run(corrected, good):
    out, result, before, values = corrected
    assert result.code == 0, result.err
    assert computed(out) == before
    first, last = table(good.out), table(out)
    assert len(first) >= 2, "the tiny model must find lesions for this test to test anything"
    assert len(last) == len(first)  # one gone, one come
    assert summary(out)["lesion_count"] == len(last)
    gone = first.loc[first["volume_mm3"].idxmax()]
    place = ["centre_x_mm", "centre_y_mm", "centre_z_mm"]
    assert np.linalg.norm(last[place].to_numpy() - gone[place].to_numpy(float), axis=1).min() > 1.0
    kept = set(first["volume_mm3"].round(3)) - {round(float(gone["volume_mm3"]), 3)}
    assert kept <= set(last["volume_mm3"].round(3))
    (added,) = set(last["volume_mm3"].round(3)) - kept
    assert added == pytest.approx(9 * 5.0, rel=0.05)  # voxels of 1 x 1 x 5 mm
    mask, _ = load(out, MASK)
    assert 2 * ((mask > 0) & (values > 0)).sum() / ((mask > 0).sum() + (values > 0).sum()) > 0.97
    np.testing.assert_array_equal(
        load(out, "sub-02_acq-ax_label-lesion_probseg")[0],
        load(good.out, "sub-02_acq-ax_label-lesion_probseg")[0],
    )
    assert summary(out)["near_threshold_mass"] == summary(good.out)["near_threshold_mass"]


def test_the_origin_is_said_everywhere(corrected, good):
    out, *_ = corrected
    file = out / ANAT / f"{MANUAL}.nii.gz"
    known = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    facts = summary(out)
    assert (facts["mask_origin"], facts["correction"]["files"]) == ("manual", [known])
    assert "manual correction" in facts["flags"]
    for name in (MASK, "sub-02_acq-ax_seg-lesions_dseg"):
        data = sidecar(out, name)
        assert f"bids::{ANAT.as_posix()}/{file.name}" in data["Sources"]
        assert data["ManualCorrection"]["files"] == [known]
        assert data["GeneratedBy"][-1]["Name"] == "Manual"
        assert "Corrected by a reader" in data["Description"]
    assert "ManualCorrection" not in sidecar(out, "sub-02_acq-ax_label-lesion_probseg")
    assert "ManualCorrection" not in sidecar(good.out, MASK)
    assert summary(good.out)["mask_origin"] == "model"
    page = page_text(out / f"{LABEL}.html")
    assert f"Lesions are those of the manual correction {file.name}" in page
    assert "A reader then corrected this segmentation by hand" in page
    assert "corrected" not in page_text(good.out / f"{LABEL}.html").lower().replace("uncorrected", "")
    assert "manual correction" in status(out)[LABEL]["warnings"]


def test_verification_group_and_validator_live_with_it(corrected, good, tmp_path):
    source, *_ = corrected
    out = Path(shutil.copytree(source, tmp_path / "out"))
    content = (out / ANAT / f"{MANUAL}.nii.gz").read_bytes()
    # a name that a validator would not like: the image's suffix is kept
    odd = out / ANAT / "sub-02_acq-ax_T2starw_desc-manual_label-GM_seg.nii.gz"
    shutil.copy(out / ANAT / f"{MANUAL}.nii.gz", odd)
    assert call("-", out, "group").code == 0
    sessions = pd.read_csv(out / "group" / "sessions.tsv", sep="\t").set_index("participant_id")
    assert sessions["mask_origin"].tolist() == ["model", "model", "manual"]
    page = page_text(out / "group.html")
    assert "In 1 of 3 sessions a reader corrected the lesions" in page
    verdict = verify_output(out, validator=False)
    assert verdict.passed, verdict.problems
    assert (out / ANAT / f"{MANUAL}.nii.gz").read_bytes() == content
    assert odd.is_file()
    issues = validator_issues(out)
    assert [issue for issue in issues if issue.get("severity") == "error"] == []


def test_it_is_a_label_for_training_and_what_the_model_found_is_none(corrected, good, tmp_path, capsys):
    out, *_ = corrected
    labels = good.labels.partition("=")[2]
    command = [
        "prepare",
        str(good.bids),
        str(tmp_path / "cases"),
        "--labels",
        str(out),
        "-d",
        f"cords={labels}",
    ]
    assert tools.main(command) == 1
    said = capsys.readouterr().err
    assert "sub-01_ses-1: refused: sub-01_ses-1 has lesion maps of this program alone" in said
    assert "sub-02: done" in said
    case = json.loads((tmp_path / "cases" / "sub-02" / "case.json").read_text())
    assert case["lesion_maps"] == [f"{MANUAL}.nii.gz"]
    assert case["lesions"] > 0
    assert [path.name for path in (tmp_path / "cases").glob("sub-*")] == ["sub-02"]


def test_without_the_file_the_models_lesions_are_back(corrected, run, good, tmp_path):
    source, *_ = corrected
    out = Path(shutil.copytree(source, tmp_path / "out"))
    (out / ANAT / f"{MANUAL}.nii.gz").unlink()
    one = ("-d", good.labels, "--participant-label", "02")
    result = run(good.bids, out, *one, "--reports-only")
    assert result.code == 1
    assert "are not those of the results" in result.err
    before = computed(out)
    assert run(good.bids, out, *one).code == 0
    assert computed(out) == before
    pd.testing.assert_frame_equal(table(out), table(good.out))
    assert summary(out)["mask_origin"] == "model"


def test_unchanged_and_empty_masks_from_a_folder_of_their_own(run, again, tmp_path):
    """As int16 with another order of axes; the folder's name stands in the sources."""
    mine = tmp_path / "mine"
    numbers, affine = load(again.out, "sub-02_acq-ax_seg-lesions_dseg")
    turned = nib.as_closest_canonical(nib.Nifti1Image(numbers.astype(np.int16), affine))
    place = mine / ANAT / "sub-02_acq-ax_seg-lesions_desc-manual_dseg.nii.gz"
    put(place, np.asarray(turned.dataobj), turned.affine, np.int16)
    first = table(again.out)
    one = ("-d", again.labels, f"mine={mine}", "--participant-label", "02")
    assert run(again.bids, again.out, *one).code == 0
    last = table(again.out)
    assert len(last) == len(first)
    np.testing.assert_allclose(last["volume_mm3"], first["volume_mm3"], rtol=0.05)
    assert f"bids:mine:{ANAT.as_posix()}/{place.name}" in sidecar(again.out, MASK)["Sources"]
    assert verify_output(again.out, validator=False).passed

    put(place, np.zeros_like(numbers), affine)
    assert run(again.bids, again.out, *one).code == 0
    assert len(table(again.out)) == 0
    assert (summary(again.out)["lesion_count"], summary(again.out)["mask_origin"]) == (0, "manual")
    assert not load(again.out, MASK)[0].any()


def test_a_corrected_cord_wins_and_what_depends_on_it_is_done_again(run, again):
    values, affine = load(again.out, CORD)
    values = values.copy()
    values[:, :, :4] = 0  # the lowest 20 mm are no cord, the reader says
    put(again.out / ANAT / f"{MANUAL_CORD}.nii.gz", values, affine)
    first, before = summary(again.out), computed(again.out)
    one = ("-d", again.labels, "--participant-label", "02")
    result = run(again.bids, again.out, *one)
    assert result.code == 0, result.err
    assert all(new != old for new, old in zip(computed(again.out), before, strict=True))
    assert summary(again.out)["cord_length_mm"] < first["cord_length_mm"] - 10
    data = sidecar(again.out, CORD)
    assert data["Description"] == f"Spinal cord, by manual correction {MANUAL_CORD}.nii.gz"
    assert f"bids::{ANAT.as_posix()}/{MANUAL_CORD}.nii.gz" in data["Sources"]
    page = page_text(again.out / f"{LABEL}.html")
    assert f"by masks that a reader corrected ({MANUAL_CORD}.nii.gz)" in page
    assert summary(again.out)["mask_origin"] == "model"

    again_at = computed(again.out)
    assert run(again.bids, again.out, *one).code == 0
    assert computed(again.out) == again_at


def test_bad_corrections_end_their_session_alone_and_early(run, again):
    values, affine = load(again.out, MASK)
    path = again.out / ANAT / f"{MANUAL}.nii.gz"
    before = computed(again.out)
    cases = {
        "voxels are below 0, NaN or infinite": np.where(values > 0, np.nan, 0.0),
        "voxels lie between whole numbers": values * 0.5,
        "4 dimensions": np.stack([values, values], axis=-1),
    }
    one = ("-d", again.labels, "--participant-label", "02")
    for words, wrong in cases.items():
        put(path, wrong, affine, np.float32)
        assert run(again.bids, again.out, *one).code == 1
        row = status(again.out)[LABEL]
        assert words in row["cause"]
        assert row["file"] == str(path)
        assert row["remedy"] != "n/a"
    log = again.out / "logs" / "sub-01_ses-2.json"
    log.unlink()
    run(again.bids, again.out, "-d", again.labels)  # the other sessions go on
    assert json.loads(log.read_text())["state"] == "done"
    far = affine.copy()
    far[2, 3] += 900
    put(path, values, far)
    run(again.bids, again.out, *one)
    assert "field of view does not meet the cord" in status(again.out)[LABEL]["cause"]
    put(path, values, affine)
    other = put(path.with_name("sub-02_acq-ax_seg-lesions_desc-manual_dseg.nii.gz"), values, affine)
    run(again.bids, again.out, *one)
    cause = status(again.out)[LABEL]["cause"]
    assert "2 corrected lesion masks of one session" in cause
    assert path.name in cause
    assert other.name in cause
    assert computed(again.out) == before
    dry = run(again.bids, again.out, "--dry-run", "--participant-label", "02")
    assert "WILL FAIL" in dry.out
