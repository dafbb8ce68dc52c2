"""Why a session has no image to work with, in one error; images of a dataset that was moved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nipype.pipeline.engine import Node

from bids_scseg.errors import CordNotFoundError, ImageError
from bids_scseg.inference.protocol import error_from_json, error_to_json
from bids_scseg.interfaces.cord import UseCordMask
from bids_scseg.interfaces.outputs import read_natives
from bids_scseg.interfaces.prepare import cause_of, load_session
from bids_scseg.workflows.job import NIPYPE_EXECUTION

CONSTANT = ImageError(
    "every voxel has the value 0", file="/raw/a.nii.gz", expected="contrast", remedy="check it"
)
BLIND = CordNotFoundError("no spinal cord found", file="/raw/b.nii.gz", remedy="give a mask")


def test_a_single_problem_is_the_cause():
    assert cause_of([("T2Sag", CONSTANT)]) is CONSTANT
    assert cause_of([]) is None


def test_several_problems_become_one_line_with_all_files():
    error = cause_of([("T2Sag", CONSTANT), ("T2Ax", BLIND)])
    assert isinstance(error, CordNotFoundError)
    assert "a.nii.gz: every voxel has the value 0; b.nii.gz: no spinal cord found" in error.found
    assert error.file == "/raw/a.nii.gz, /raw/b.nii.gz"
    assert error.remedy == "check it; give a mask"


def test_errors_survive_the_way_through_json():
    again = error_from_json(error_to_json(CONSTANT))
    assert type(again) is ImageError
    assert str(again) == str(CONSTANT)


@pytest.mark.parametrize("cord", [True, False])
def test_a_record_of_an_earlier_run_serves_a_dataset_that_was_moved(cord, tmp_path):
    """Hashes know contents and no paths, so the record is that of the first place."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    data = np.random.default_rng(0).random((12, 12, 30)).astype(np.float32)
    mask = np.zeros(data.shape, np.uint8)
    mask[4:8, 4:8] = cord
    for name, values in (("image", data), ("mask", mask)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), first / f"{name}.nii.gz")

    def record(place: Path) -> Path:
        take = UseCordMask(in_file=place / "image.nii.gz", mask_file=place / "mask.nii.gz", source="s")
        node = Node(take, name="given_cord_01", base_dir=tmp_path / "work")
        node.config = {"execution": NIPYPE_EXECUTION}
        return Path(node.run().outputs.record_file)

    stamp = record(first).stat().st_mtime_ns
    first.rename(second)
    found, image = record(second), second / "image.nii.gz"
    assert found.stat().st_mtime_ns == stamp
    images, cords, problems = load_session([found], [image], keys=["T2Sag"], names=["image.nii.gz"])
    np.testing.assert_array_equal(images["T2Sag"][0][0], data)
    assert (cords["T2Sag"][0] is not None) is cord
    assert [error.file for _, error in problems] == ([] if cord else [str(image)])
    file = SimpleNamespace(path=str(image), relative="image.nii.gz")
    natives = read_natives(SimpleNamespace(sequences=[SimpleNamespace(files=[file])]), [str(found)])
    np.testing.assert_array_equal(natives["image.nii.gz"][0], data)
