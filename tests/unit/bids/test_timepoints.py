"""What the comparison of two sessions finds and reads."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from timed_sessions import straight_geometry, write_timed_session

from bids_scseg.bids.timepoints import (
    acquisition_times,
    find_session_files,
    origin_world,
    raw_folder,
    read_anchor,
    read_map,
)
from bids_scseg.bids.write import write_image, write_json
from bids_scseg.errors import ImageError

LABEL = "sub-01_ses-1"
IMAGE = "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz"


@pytest.fixture
def out(tmp_path):
    write_timed_session(tmp_path / "out", LABEL, [(0.0, 0.0, 40.0, 3.0)])
    return tmp_path / "out"


def table(out):
    return next((out / "sub-01/ses-1/anat").glob("*_dseg.tsv"))


def put_image(root, name, *, up=0.0):
    grid = straight_geometry(up=up).fused_grid("T2Sag")
    data = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    write_image(root, name, data, grid=grid, metadata={})
    return data


def test_files_of_a_session(out):
    found = find_session_files(out, "01", "1", raw=None, table=table(out))
    assert found.geometry.name == f"{LABEL}_geometry.json"
    assert found.lesions.name == f"{LABEL}_seg-lesions_dseg.nii.gz"
    assert found.probability.name == f"{LABEL}_label-lesion_probseg.nii.gz"
    assert found.image is None
    nothing = find_session_files(out, "01", "9", raw=None, table=None)
    assert (nothing.geometry, nothing.lesions, nothing.image) == (None, None, None)


def test_the_fused_anchor_comes_first_then_the_raw_one(out, tmp_path):
    raw = tmp_path / "raw"
    data = put_image(raw, IMAGE)
    found = find_session_files(out, "01", "1", raw=raw, table=table(out))
    assert (found.image, found.fused) == (raw / IMAGE, False)
    read, _ = read_anchor(found, straight_geometry())
    assert (read == data).all()
    put_image(out, f"sub-01/ses-1/anat/{LABEL}_desc-preproc_T2w.nii.gz")
    assert find_session_files(out, "01", "1", raw=raw, table=table(out)).fused


def test_an_image_that_has_changed_is_refused(out, tmp_path):
    put_image(tmp_path / "raw", IMAGE, up=3.0)
    found = find_session_files(out, "01", "1", raw=tmp_path / "raw", table=table(out))
    with pytest.raises(ImageError, match="another lattice"):
        read_anchor(found, straight_geometry())


def test_maps_may_be_empty_and_damaged_ones_are_told(out):
    grid = straight_geometry().fused_grid("T2Sag")
    write_image(out, "sub-01/empty.nii.gz", np.zeros(grid.shape, np.uint16), grid=grid, metadata={})
    data, lattice = read_map(out / "sub-01/empty.nii.gz")
    assert not data.any()
    assert lattice == grid
    path = out / "sub-01/empty.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError):
        read_map(path)


def test_the_raw_dataset_is_where_the_outputs_say(out, tmp_path):
    assert raw_folder(out) is None
    raw = tmp_path / "raw"
    raw.mkdir()
    write_json(out, "dataset_description.json", {"DatasetLinks": {"raw": raw.as_uri()}})
    assert raw_folder(out) == raw
    raw.rmdir()
    assert raw_folder(out) is None
    write_json(out, "dataset_description.json", {"DatasetLinks": ["raw"]})
    assert raw_folder(out) is None


def test_times_of_sessions_tables_before_those_of_scans(tmp_path):
    (tmp_path / "sub-01/ses-2").mkdir(parents=True)
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-1\t2020-01-01T08:00:00Z\nses-2\tn/a\nses-3\tlast summer\n"
    )
    (tmp_path / "sub-01/ses-2/sub-01_ses-2_scans.tsv").write_text(
        "filename\tacq_time\nanat/b.nii.gz\t2021-05-05T09:30:00\nanat/a.nii.gz\t2021-05-05T09:00:00\n"
    )
    found = acquisition_times(tmp_path, [("01", "1"), ("01", "2"), ("01", "3"), ("02", "1")])
    assert found == {
        "sub-01_ses-1": datetime(2020, 1, 1, 8), "sub-01_ses-2": datetime(2021, 5, 5, 9)
    }  # fmt: skip


def test_tables_that_cannot_be_used_give_no_times(tmp_path):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_bytes(b"session_id\tacq_time\n\xff\xfe\n")
    assert acquisition_times(tmp_path, [("01", "1")]) == {}


def test_places_of_the_cord_in_the_world():
    assert origin_world(straight_geometry(), 40.0) == pytest.approx([0.0, 0.0, 40.0])
