"""Why a session has no image to work with, in one error."""

from __future__ import annotations

from bids_scseg.errors import CordNotFoundError, ImageError
from bids_scseg.interfaces.base import error_from_json, error_to_json
from bids_scseg.interfaces.prepare import cause_of

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
