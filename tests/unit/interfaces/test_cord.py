"""Cord records."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bids_scseg.interfaces.cord import read_record, record_cord


def test_a_record_changes_with_the_partial_volume_of_the_cord(tmp_path):
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    data = np.random.default_rng(0).random((12, 12, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), image)
    share = np.zeros((12, 12, 8), np.float32)
    share[4:8, 4:8] = 1.0
    found = []
    for rim in (0.2, 0.2, 0.4):  # all below one half: the same binary mask
        share[3, 4:8] = rim
        nib.save(nib.Nifti1Image(share, np.eye(4)), mask)
        found.append(read_record(record_cord(image, mask, tmp_path, source="test"))["sha256"])
    assert found[0] == found[1] != found[2]
