"""Cord records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nipype.pipeline.engine import Node
from nipype.pipeline.engine.nodes import NodeExecutionError

from bids_scseg.errors import ImageError, SessionError
from bids_scseg.inference.protocol import error_from_json
from bids_scseg.interfaces import cord
from bids_scseg.interfaces.base import load_failure
from bids_scseg.interfaces.cord import FindCord, read_record, record_cord
from bids_scseg.interfaces.outputs import read_natives
from bids_scseg.preprocess.cordmask import clean_cord
from bids_scseg.space.grid import Grid
from bids_scseg.workflows.job import NIPYPE_EXECUTION

GONE = SessionError("the inference process cannot be reached", file="ADDRESS")
MEMORY = SessionError("inference ran out of memory", remedy="give the run more memory")


@pytest.fixture
def finder(tmp_path, monkeypatch):
    """Run the node in one work folder: what the process says to an image, and to a ping; by run."""
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 30), np.float32), np.eye(4)), image)
    asked = []

    def run(number, answer=None, alive=True):
        folder = tmp_path / f"run-{number}"
        folder.mkdir(exist_ok=True)
        address = str(folder / "s")

        def request_cord(where, *, bundle, image, output):
            asked.append(where)
            if answer is not None:
                raise type(answer)(answer.found, file=address if answer.file else None, remedy=answer.remedy)
            found = np.zeros((12, 12, 30), np.float32)
            found[4:8, 4:8] = 1
            nib.save(nib.Nifti1Image(found, np.eye(4)), output)

        def request(where, *, task):
            assert (where, task) == (address, "ping")
            if not alive:
                raise GONE

        monkeypatch.setattr(cord, "request_cord", request_cord)
        monkeypatch.setattr(cord, "request", request)
        interface = FindCord(in_file=image, bundle="b", bundle_sha256="0", socket=address)
        node = Node(interface, name="find_cord_01", base_dir=tmp_path / "work")
        node.config = {"execution": NIPYPE_EXECUTION}
        return read_record(Path(node.run().outputs.record_file))

    run.asked, run.image, run.node_folder = asked, image, tmp_path / "work" / "find_cord_01"
    return run


def test_what_the_network_cannot_do_is_one_images_problem(finder):
    record = finder(1, MEMORY)
    error = error_from_json(record["problem"])
    assert record["mask"] is None
    assert (type(error), error.found) == (SessionError, "inference ran out of memory")
    assert (error.file, error.remedy) == (str(finder.image), "give the run more memory")


def test_such_a_problem_lasts_as_long_as_its_run(finder):
    assert finder(1, MEMORY)["problem"]
    assert finder(1)["problem"] and len(finder.asked) == 1  # a session tried once more in the same run
    (finder.image.parent / "run-1").rmdir()
    assert finder(2, MEMORY)["problem"] and len(finder.asked) == 2
    (finder.image.parent / "run-2").rmdir()
    assert finder(3)["problem"] is None and len(finder.asked) == 3
    (finder.image.parent / "run-3").rmdir()
    assert finder(4, MEMORY)["problem"] is None and len(finder.asked) == 3  # what was found stays


def test_what_an_image_is_lasts(finder):
    assert finder(1, ImageError("one slice"))["problem"]
    (finder.image.parent / "run-1").rmdir()
    assert finder(2)["problem"] and len(finder.asked) == 1


@pytest.mark.parametrize(("answer", "alive"), [(GONE, True), (MEMORY, False)])
def test_a_process_that_is_gone_ends_the_session(finder, answer, alive):
    with pytest.raises(NodeExecutionError):
        finder(1, answer, alive)
    failure = load_failure(finder.node_folder)
    assert type(failure) is SessionError and failure.found == answer.found


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


def test_what_a_program_found_is_held_against_a_cord(tmp_path):
    """A cord of 30 mm with a lump on top: of a user's mask all stays, of a found one the cord."""
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    data = np.random.default_rng(0).random((30, 30, 50)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), image)
    share = np.zeros(data.shape, np.float32)
    share[12:20, 12:20, :30] = 1.0
    share[4:28, 4:28, 30:] = 1.0
    nib.save(nib.Nifti1Image(share, np.eye(4)), mask)
    for found, top in ((False, 50), (True, 30)):
        record_cord(image, mask, tmp_path, source="test", found=found)
        kept = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
        assert np.flatnonzero(kept.any(axis=(0, 1)))[-1] == top - 1
    weights = np.asarray(nib.load(tmp_path / "weights.nii.gz").dataobj)
    assert (clean_cord(weights, Grid(shape=weights.shape, affine=np.eye(4))) == kept).all()
    share[..., 8:] = 0  # 512 mm3, but 8 mm in a field of view of 50 mm
    nib.save(nib.Nifti1Image(share, np.eye(4)), mask)
    assert read_record(record_cord(image, mask, tmp_path, source="test"))["problem"] is None
    record = read_record(record_cord(image, mask, tmp_path, source="test", found=True))
    assert "no spinal cord found" in record["problem"]["found"]


def test_the_record_says_how_much_was_taken_for_roots(tmp_path):
    image, prob = tmp_path / "image.nii.gz", tmp_path / "prob.nii.gz"
    grid = np.diag([1, 1, 2.0, 1])
    data = np.random.default_rng(0).random((30, 30, 60)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, grid), image)
    share = np.zeros(data.shape, np.float32)
    share[12:20, 12:20, 30:] = 1.0
    share[14:18, 14:18, 5:27] = 0.9  # 22 slices below an empty one, three of which the mean takes for thin
    nib.save(nib.Nifti1Image(share, grid), prob)
    record = read_record(record_cord(image, prob, tmp_path, source="test", found=True))
    kept = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert kept[..., 30:].sum() == 64 * 30 and not kept[..., :30].any()
    assert record["cut_mm"] == 2 * 22
    plan = SimpleNamespace(
        sequences=[SimpleNamespace(files=[SimpleNamespace(path=image, relative="image.nii.gz")])]
    )
    (native,) = read_natives(plan, [str(tmp_path / "cord.json")]).values()
    assert native.cut_mm == 44 and native.source == "test" and (native.cord == kept).all()
    older = {name: value for name, value in record.items() if name != "cut_mm"}
    (tmp_path / "cord.json").write_text(json.dumps(older))
    assert read_natives(plan, [str(tmp_path / "cord.json")])["image.nii.gz"].cut_mm == 0
    assert read_record(record_cord(image, prob, tmp_path, source="test"))["cut_mm"] == 0


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_a_mask_may_be_of_either_nifti(end, tmp_path):
    """As the plan has it; and a damaged one is told before its voxels are taken."""
    image, mask = tmp_path / "image.nii.gz", tmp_path / f"mask{end}"
    data = np.random.default_rng(0).random((12, 12, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), image)
    share = np.zeros(data.shape, np.uint8)
    share[4:8, 4:8] = 1
    nib.save(nib.Nifti2Image(share, np.eye(4)), mask)
    assert read_record(record_cord(image, mask, tmp_path, source="test"))["problem"] is None
    content = bytearray(mask.read_bytes())
    if end == ".nii.gz":
        content[-6] ^= 1  # in the checksum of the voxels
    else:
        content = content[:-6]
    mask.write_bytes(content)
    problem = read_record(record_cord(image, mask, tmp_path, source="test"))["problem"]
    assert problem["class"] == "ImageError"
    assert problem["found"].startswith("cord mask cannot be read (")
    assert problem["file"] == str(mask)
