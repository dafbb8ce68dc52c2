"""Folders of masks: read, brought onto the lattice of the truth, refused where that makes no sense."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.evaluate import Request, evaluate_folders, read_mask, resample_nearest, same_grid
from bids_scseg.errors import DataError, ImageError, MissingInputError, NoMatchError, UsageError
from bids_scseg.report.evaluation import write_evaluation
from bids_scseg.space.grid import Grid

SHAPE = (8, 8, 30)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, 1, 0, -20], [0, 0, 2, 7], [0, 0, 0, 1]])
NAME = "sub-{}/anat/sub-{}_acq-sag_label-lesion_{}.nii.gz"


def _save(root, name, data, affine=AFFINE):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)
    return path


def _box(start, stop, shape=SHAPE, value=1, dtype=np.uint8):
    data = np.zeros(shape, dtype)
    data[2:5, 2:5, start:stop] = value
    return data


@pytest.fixture
def folders(tmp_path):
    """Two subjects with one lesion of 9 x 5 voxels of 2 mm³; half of the first one's is predicted."""
    for subject, truth, prediction in (("1", (5, 15), (5, 10)), ("2", (5, 15), (5, 15))):
        _save(tmp_path / "truth", NAME.format(subject, subject, "mask"), _box(*truth))
        _save(tmp_path / "pred", NAME.format(subject, subject, "mask"), _box(*prediction))
        probability = _box(*prediction, value=0.75, dtype=np.float32)
        _save(tmp_path / "pred", NAME.format(subject, subject, "probseg"), probability)
    return tmp_path


def _evaluate(folders, **more):
    options = {"predictions": {"ours": folders / "pred"}, "truth": folders / "truth", "profile": "walsh2024"}
    return evaluate_folders(Request(**{**options, **more}))


def test_a_folder_by_hand(folders):
    found = _evaluate(folders)
    assert (found.evaluation.profile, found.evaluation.space) == ("walsh2024", "native")
    first, second = found.evaluation.results
    assert first.scores.dice == pytest.approx(2 * 45 / (90 + 45))
    assert second.scores.dice == 1
    assert (first.scores.truth_mm3, first.scores.predicted_mm3) == (180, 90)
    assert first.lesions[1].probability == pytest.approx(0.75)
    assert found.evaluation.methods[0].calibration.expected_error == pytest.approx(0.25)
    assert [facts.resampled for facts in found.facts] == [False, False]
    assert found.unpaired == {"ours": ()}


def test_what_a_reader_corrected_is_no_prediction(folders):
    path = folders / "pred" / NAME.format(1, 1, "mask").replace(".nii.gz", ".json")
    path.write_text(json.dumps({"ManualCorrection": {"origin": "manual"}}))
    found = _evaluate(folders)
    assert [result.key.subject for result in found.evaluation.results] == ["sub-2"]
    refused = {(item.side, item.state) for item in found.unpaired["ours"]}
    assert refused == {("truth", "refused"), ("prediction", "refused")}
    assert "says nothing of the model" in found.unpaired["ours"][0].reason


def test_a_turned_and_cut_prediction_gives_the_same_scores(folders):
    before = _evaluate(folders).evaluation.results[0].scores
    # Other orientation, other order of axes, and slices that end before the image does.
    image = nib.load(folders / "pred" / NAME.format(1, 1, "mask"))
    data = np.transpose(np.asarray(image.dataobj)[::-1, :, :20], (2, 0, 1))
    turned = AFFINE.copy()
    turned[:3, 3] += AFFINE[:3, 0] * (SHAPE[0] - 1)
    turned[:3, 0] *= -1
    _save(folders / "pred", NAME.format(1, 1, "mask"), data, turned[:, [2, 0, 1, 3]])
    found = _evaluate(folders)
    assert found.evaluation.results[0].scores == before
    assert found.facts[0].resampled
    assert found.facts[0].truth_outside_mm3 == 0


def test_truth_outside_the_view_is_counted_as_missed(folders):
    lower = AFFINE.copy()
    lower[2, 3] += 2 * 10
    _save(folders / "pred", NAME.format(2, 2, "mask"), _box(0, 5), lower)
    facts = _evaluate(folders).facts[1]
    assert facts.resampled
    assert facts.truth_outside_mm3 == 9 * 5 * 2


def test_another_world_is_refused_and_listed(folders):
    _save(folders / "pred", NAME.format(1, 1, "mask"), _box(5, 10), np.diag([1.0, 1, 2, 1]))
    found = _evaluate(folders)
    assert [result.key.subject for result in found.evaluation.results] == ["sub-2"]
    assert [item.state for item in found.unpaired["ours"]] == ["refused", "refused"]
    assert "field of view" in found.unpaired["ours"][0].reason


def test_reference_masks_in_other_spaces_are_listed(folders):
    for subject in "13":
        name = f"sub-{subject}/anat/sub-{subject}_space-T2w_label-lesion_mask.nii.gz"
        _save(folders / "truth", name, _box(5, 15))
    found = _evaluate(folders)
    assert len(found.evaluation.results) == 2
    listed = {item.file: item for item in found.unpaired["ours"]}
    assert {item.state for item in listed.values()} == {"elsewhere"}
    other, alone = (listed[f"sub-{n}/anat/sub-{n}_space-T2w_label-lesion_mask.nii.gz"].reason for n in "13")
    assert "none" not in other
    assert alone.endswith("sub-3 has none in native space")
    assert not _evaluate(folders, truth_files="*acq-sag*").unpaired["ours"]


def test_nothing_to_compare_is_an_error(folders):
    with pytest.raises(NoMatchError, match="missing"):
        _save(folders / "other", NAME.format(9, 9, "mask"), _box(0, 5))
        _evaluate(folders, predictions={"other": folders / "other"})
    with pytest.raises(UsageError, match="base"):
        _evaluate(folders, baseline="base")
    with pytest.raises(DataError, match="profile"):
        _evaluate(folders, profile="nobody")
    with pytest.raises(MissingInputError, match="participants"):
        _evaluate(folders, by=("sex",))


def test_cohort_columns(folders):
    (folders / "truth" / "participants.tsv").write_text("participant_id\tsex\nsub-1\tF\nsub-3\tM\n")
    found = _evaluate(folders, by=("sex",)).evaluation
    groups = {row.value: row.images for row in found.summary if row.column == "sex"}
    assert groups == {"F": 1, "n/a": 1}


def test_probabilities_of_another_folder(folders):
    for subject in "12":
        sure = _box(5, 15, value=1, dtype=np.float32)
        _save(folders / "maps", f"sub-{subject}_acq-sag_label-lesion_probseg.nii.gz", sure)
    found = _evaluate(folders, probabilities={"ours": folders / "maps"})
    assert found.evaluation.methods[0].calibration.expected_error == 0
    assert found.facts[0].probability.startswith("sub-1_acq-sag")


@pytest.mark.parametrize("factor", [100, np.nan])
def test_an_unusable_map_costs_no_scores(folders, factor):
    plain = _evaluate(folders).evaluation.results[0].scores
    _save(folders / "pred", NAME.format(1, 1, "probseg"), _box(5, 10, value=factor, dtype=np.float32))
    found = _evaluate(folders)
    assert found.evaluation.results[0].scores == plain
    assert found.evaluation.methods[0].without_probability == 1
    assert not found.unpaired["ours"]
    assert found.facts[0].probability == ""
    assert "probseg" in found.facts[0].unusable_map
    assert "cannot be used" in write_evaluation(found, folders / "out").read_text()


def test_levels_and_columns_of_the_truth(folders):
    for subject in "12":
        name = NAME.format(subject, subject, "x").replace("label-lesion_x", "seg-lesions_dseg")
        path = _save(folders / "truth", name, _box(5, 15, value=4))
        table = path.with_name(path.name.replace(".nii.gz", ".tsv"))
        table.write_text("index\tname\tlevel\tcolumn\n4\ta\tC3\tdorsal\n")
    strata = {(row.by, row.stratum): row.lesions for row in _evaluate(folders).evaluation.strata}
    assert strata["level", "C3"] == strata["column", "dorsal"] == 2


def test_what_is_no_mask_is_refused(tmp_path):
    with pytest.raises(ImageError, match="marked"):
        read_mask(_save(tmp_path, "a.nii.gz", np.ones(SHAPE, np.uint8)))
    with pytest.raises(ImageError, match="negative"):
        read_mask(_save(tmp_path, "b.nii.gz", _box(0, 5, value=-1, dtype=np.int16)))
    with pytest.raises(ImageError, match="NaN"):
        read_mask(_save(tmp_path, "c.nii.gz", _box(0, 5, value=np.nan, dtype=np.float32)))
    soft, _ = read_mask(_save(tmp_path, "d.nii.gz", _box(0, 5, value=0.4, dtype=np.float32)))
    assert not soft.any()
    empty, _ = read_mask(_save(tmp_path, "e.nii.gz", np.zeros(SHAPE, np.uint8)))
    assert not empty.any()


def test_masks_of_any_scale_count_alike_and_shades_are_refused(folders):
    path = folders / "truth" / NAME.format(1, 1, "mask")
    plain = _evaluate(folders).evaluation.results[0].scores
    _save(folders / "truth", path.relative_to(folders / "truth"), _box(5, 15, value=255))
    assert _evaluate(folders).evaluation.results[0].scores == plain
    blurred = _box(5, 15, value=255, dtype=np.float32)
    for shift, axis in ((1, 0), (-1, 1)):
        blurred = 0.7 * blurred + 0.3 * np.roll(blurred, shift, axis)
    for values, words in (
        (blurred * 0.999, "values between whole numbers, up to"),
        (_shades(), "values that differ from voxel to voxel"),
        (blurred / 600, "nothing of it would be lesion"),
    ):
        _save(folders / "truth", path.relative_to(folders / "truth"), values)
        found = _evaluate(folders)
        assert [result.key.subject for result in found.evaluation.results] == ["sub-2"]
        assert words in found.unpaired["ours"][0].reason


def _shades():
    """A lesion of 0 to 255 that was smoothed and kept as bytes."""
    data = np.zeros(SHAPE, np.uint8)
    data[2:5, 2:5, 5:15] = np.arange(10, 100).reshape(3, 3, 10)
    return data


def test_nearest_voxels_by_hand():
    # Voxels of 2 mm onto voxels of 1 mm, shifted by half a voxel: each value twice, the last one outside.
    coarse = Grid(shape=(2, 1, 1), affine=np.diag([2.0, 1, 1, 1]))
    affine = np.eye(4)
    affine[0, 3] = -0.5
    fine = Grid(shape=(5, 1, 1), affine=affine)
    values, inside = resample_nearest(np.array([5, 6]).reshape(2, 1, 1), coarse, onto=fine)
    assert values.ravel().tolist() == [5, 5, 6, 6, 0]
    assert inside.ravel().tolist() == [True, True, True, True, False]
    assert same_grid(coarse, coarse)
    assert not same_grid(coarse, fine)
