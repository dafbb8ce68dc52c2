"""``--geometry``: an earlier run's geometries applied without a fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from integration.checks import page_text, status
from integration.cohorts import image_path, save

from bids_scseg.preprocess import prepare
from bids_scseg.space.grid import Grid

LABEL, ANAT = "sub-01_ses-1", Path("sub-01") / "ses-1" / "anat"


def written(out: Path, ending: str) -> dict[str, object]:
    return json.loads((out / ANAT / f"{LABEL}_{ending}.json").read_text())


def volumes(out: Path) -> dict[str, np.ndarray]:
    """Values of the lesion images of a session, by name."""
    found = sorted((out / ANAT).glob("*lesion*.nii.gz"))
    return {path.name: np.asarray(nib.load(path).dataobj) for path in found}


@pytest.fixture(scope="module")
def again(run, good, tmp_path_factory) -> Path:
    """The session of two slabs and an axial scan once more, by its own geometry; a fit would fail."""
    out = tmp_path_factory.mktemp("given") / "out"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fitted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "chain_slabs", refuse)
        patch.setitem(prepare.FRAMES, "centerline", refuse)
        result = run(
            good.bids, out, "-d", good.labels, "--output-spaces", "all", "--geometry", good.out,
            "--participant-label", "01", "--session-label", "1",
        )  # fmt: skip
    assert result.code == 0, result.err
    return out


def test_the_same_results_without_a_fit(again, good):
    assert written(again, "geometry") == written(good.out, "geometry")
    found, expected = volumes(again), volumes(good.out)
    assert found.keys() == expected.keys()
    assert len(found) > 6
    for name, values in found.items():
        # the file has twelve digits: probabilities may differ by rounding, lesions must not
        np.testing.assert_allclose(
            values, expected[name], atol=1e-5 if "probseg" in name else 0, err_msg=name
        )


def test_it_is_said_everywhere(again, good):
    source = good.out / ANAT / f"{LABEL}_geometry.json"
    given = {"file": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert written(again, "summary")["fit"]["geometry"] == given
    for ending in ("acq-sag_label-lesion_probseg", "acq-sag_label-lesion_mask", "acq-sag_seg-lesions_dseg"):
        assert written(again, ending)["GeometryGiven"] == given
    page = page_text(again / f"{LABEL}.html")
    assert "nothing was fitted" in page
    assert f"taken from an earlier run ({source.name}" in page
    assert "were registered rigidly" not in page
    before = page_text(good.out / f"{LABEL}.html")
    assert "taken from an earlier run" not in before
    assert "GeometryGiven" not in written(good.out, "acq-sag_label-lesion_probseg")


def test_an_image_with_another_lattice_is_refused_and_others_go_on(run, good, cohort, tmp_path):
    bids, out = tmp_path / "bids", tmp_path / "out"
    for label in ("sub-01_ses-2", "sub-02"):
        source = image_path(cohort, label, "acq-ax_T2starw")
        target = image_path(bids, label, "acq-ax_T2starw")
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
    (bids / "dataset_description.json").write_bytes((cohort / "dataset_description.json").read_bytes())
    image = nib.load(target)
    affine = image.affine + np.pad([[0.4]], ((0, 3), (3, 0)))
    save(np.asarray(image.dataobj), Grid(shape=image.shape, affine=affine), target)
    result = run(bids, out, "-d", good.labels, "--geometry", good.out)
    assert result.code == 1
    rows = status(out)
    assert rows["sub-01_ses-2"]["state"] == "done"
    assert rows["sub-02"]["state"] == "refused"
    assert "sub-02_acq-ax_T2starw.nii.gz had another lattice" in rows["sub-02"]["cause"]
    assert "leave --geometry out" in rows["sub-02"]["cause"]
    assert not (out / "sub-02").exists()


def test_no_such_folder(run, cohort, tmp_path):
    result = run(cohort, tmp_path / "out", "--geometry", tmp_path / "nowhere")
    assert result.code == 66
    assert "correct --geometry" in result.err.lower()
    assert not (tmp_path / "out").exists()


def test_the_dry_run_says_so(run, good, cohort, tmp_path):
    result = run(cohort, tmp_path / "out", "--geometry", good.out, "--dry-run")
    assert result.out.count("applied as it is; nothing is fitted") == 3
