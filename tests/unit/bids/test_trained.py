"""Whether subjects that are evaluated were trained on: by sidecars, logs and splits, without any network."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.derivatives import SessionResults
from bids_scseg.bids.evaluate import Request, evaluate_folders
from bids_scseg.bids.trained import BUNDLE, made_by
from bids_scseg.options import RunOptions
from bids_scseg.report.evaluation_subjects import lines, subjects_json

WEIGHTS, OTHERS = "a" * 64, "b" * 64
NAME = "sub-{0}/anat/sub-{0}_label-lesion_mask.nii.gz"


def _provenance(checksum):
    """The sidecar's words as the app writes them."""
    summary = {"model": "bundle", "model_sha256": checksum, "version": "1"}
    nothing = dict.fromkeys(("plan", "geometry", "labels", "probability", "lesions", "cords"))
    return SessionResults(**nothing, summary=summary, anchor_images=(), sequences=()).provenance


def _mask(root, subject, checksum=None):
    path = root / NAME.format(subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros((5, 5, 20), np.uint8)
    data[1:3, 1:3, 5:10] = 1
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    if checksum:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(_provenance(checksum)))
    return path


def _model(folder, checksum, **sides):
    (folder / BUNDLE).mkdir(parents=True)
    (folder / BUNDLE / "model.json").write_text(json.dumps({"weights_sha256": checksum}))
    (folder / "split.json").write_text(json.dumps(sides))
    return folder


@pytest.fixture
def cohort(tmp_path):
    """Four people with reference masks and predictions of a model that was trained on the first two."""
    for subject in ("01", "02", "03", "04"):
        _mask(tmp_path / "truth", subject)
        _mask(tmp_path / "out", subject, WEIGHTS)
    _model(tmp_path / "model", WEIGHTS, training=["01", "02"], validation=["03"], test=["04", "05"])
    _log(tmp_path, tmp_path / "model" / BUNDLE)
    return tmp_path


def _log(cohort, model):
    options = RunOptions(bids_dir=None, output_dir=cohort / "out", level="participant", model=str(model))
    (cohort / "out" / "logs").mkdir(exist_ok=True)
    (cohort / "out" / "logs" / "run-1.toml").write_text(options.to_toml())


def _evaluate(cohort, **more):
    request = Request(
        predictions={"ours": cohort / "out"}, truth=cohort / "truth", profile="walsh2024", **more
    )
    return evaluate_folders(request)


def test_the_checksum_is_read_as_the_app_writes_it(cohort):
    assert made_by(cohort / "out" / NAME.format("01")) == WEIGHTS
    assert made_by(cohort / "truth" / NAME.format("01")) is None


def test_training_subjects_are_found_by_the_logs_and_named_loudly(cohort):
    found = _evaluate(cohort)
    told = subjects_json(found)["predictions"]["ours"]
    assert told["trained_on"] == ["sub-01", "sub-02"]
    assert told["threshold_chosen_on"] == ["sub-03"]
    assert told["same_weights"]
    said = "\n".join(lines(found))
    assert "WARNING: ours: 2 of 4 subjects evaluated were trained on." in said
    assert "sub-01, sub-02" in said
    assert "the threshold was chosen on 1 of 4" in said
    assert f"--split {cohort / 'model' / 'split.json'}" in said


def test_a_side_is_evaluated_alone_and_who_is_missing_is_named(cohort):
    found = _evaluate(cohort, split=cohort / "model")
    assert [result.key.subject for result in found.evaluation.results] == ["sub-04"]
    assert found.unpaired == {"ours": ()}  # nobody asked for the others
    told = subjects_json(found)
    assert (told["side"], told["without_reference"], told["on_no_side"]) == ("test", ["sub-05"], [])
    said = "\n".join(lines(found))
    assert "WARNING" not in said
    assert "no subject evaluated was trained on" in said
    assert "1 of 2 subjects asked for have no reference mask. sub-05." in said


def test_a_subject_without_a_prediction_is_named(cohort):
    (cohort / "out" / NAME.format("02")).unlink()
    found = _evaluate(cohort, split=cohort / "model", side="training")
    assert subjects_json(found)["predictions"]["ours"]["without_prediction"] == ["sub-02"]
    said = "\n".join(lines(found))
    assert "1 subjects asked for have no prediction that could be compared. sub-02" in said
    assert "WARNING: ours: 1 of 1 subjects evaluated were trained on." in said


def test_validation_subjects_come_with_a_word_of_the_threshold(cohort):
    (cohort / "model" / "split.json").write_text(json.dumps({"training": ["01", "02"], "validation": ["03"]}))
    found = _evaluate(cohort, split=cohort / "model")
    assert found.selection.side == "validation"
    said = "\n".join(lines(found))
    assert "the threshold was chosen on 1 of 1 subjects evaluated" in said
    assert "slightly optimistic" in said
    assert "On no side of it, and not evaluated: sub-04." in said


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: _mask(root / "out", "01", OTHERS), "several models"),
        (lambda root: [_mask(root / "out", f"0{n}", OTHERS) for n in range(1, 5)], "by the logs"),
        (lambda root: (root / "out" / "logs" / "run-1.toml").unlink(), "by the logs"),
        (lambda root: _log(root, "cord-lesion"), "by the logs"),
        (lambda root: (root / "model" / "split.json").unlink(), "by the logs"),
        (lambda root: [path.unlink() for path in (root / "out").rglob("*.json")], "do not say"),
    ],
)
def test_what_cannot_be_known_is_said_in_one_line(cohort, spoil, reason):
    spoil(cohort)
    found = _evaluate(cohort)
    assert found.trainings["ours"].split is None
    said = [line for line in lines(found) if "not known" in line]
    assert len(said) == 1
    assert reason in said[0]
    assert "--split" in said[0]
    assert subjects_json(found)["predictions"]["ours"]["trained_on"] is None


def test_a_split_of_another_model_does_not_vouch(cohort):
    other = _model(cohort / "other", OTHERS, training=["01", "02", "03"], validation=[], test=["04"])
    (cohort / "out" / "logs" / "run-1.toml").unlink()
    said = "\n".join(lines(_evaluate(cohort, split=other)))
    assert "WARNING: ours: the split is of another model." in said
    assert "is not known" in said
    # and where the model's own split is found, that one counts
    _log(cohort, cohort / "model" / BUNDLE)
    found = _evaluate(cohort, split=other, side="training")
    assert found.trainings["ours"].split == cohort / "model" / "split.json"
    assert subjects_json(found)["predictions"]["ours"]["trained_on"] == ["sub-01", "sub-02"]


def test_a_split_by_hand_is_believed(cohort):
    """Of another program, say: without logs, sidecars or bundle."""
    for path in (cohort / "out").rglob("*.json"):
        path.unlink()
    split = cohort / "mine.json"
    split.write_text(json.dumps({"validation": ["03"], "test": ["04"]}))
    found = _evaluate(cohort, split=split)
    assert not found.trainings["ours"].verified
    assert "no subject evaluated was trained on" in "\n".join(lines(found))
