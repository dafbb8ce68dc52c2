"""The command ``scseg evaluate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.cli.evaluate import PROFILE_NAMES, add_parser
from bids_scseg.cli.tools import main
from bids_scseg.measure.profiles import PROFILES


@pytest.fixture
def folders(tmp_path):
    data = np.zeros((5, 5, 20), np.uint8)
    data[1:3, 1:3, 5:10] = 1
    for folder in ("truth", "pred"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / folder / "case1.nii.gz")
    return tmp_path


def _run(folders, *more, pred=None):
    pred = pred or [str(folders / "pred")]
    options = [word for text in pred for word in ("--pred", text)]
    return main(
        ["evaluate", *options, "--truth", str(folders / "truth"), "--out", str(folders / "out"), *more]
    )


def test_profiles_are_those_there_are():
    assert set(PROFILE_NAMES) == set(PROFILES)


def test_plain_folders(folders, capsys):
    assert _run(folders, "--profile", "panoptica") == 0
    said = capsys.readouterr().err
    assert "profile panoptica, native space" in said
    assert "prediction: f1 1.000" in said
    data = json.loads((folders / "out" / "evaluation.json").read_text())
    assert data["settings"]["predictions"] == {"prediction": str(folders / "pred")}


def test_subjects_are_named_or_of_a_side(folders, capsys):
    for folder in ("truth", "pred"):
        (folders / folder / "case2.nii.gz").write_bytes((folders / folder / "case1.nii.gz").read_bytes())
    assert _run(folders) == 0
    said = capsys.readouterr().err
    assert "Subjects: all 2 with reference masks." in said
    assert "whether subjects evaluated were trained on is not known" in said
    assert "--split" in said
    assert _run(folders, "--participant-label", "case2") == 0
    assert "Subjects: 1 of 2 with reference masks, named by --participant-label." in capsys.readouterr().err
    (folders / "split.json").write_text(json.dumps({"training": ["case1"], "validation": ["case2"]}))
    assert _run(folders, "--split", str(folders)) == 0
    said = capsys.readouterr().err
    assert "1 of 2 with reference masks, of the validation side of" in said
    assert "the threshold was chosen on 1 of 1 subjects evaluated" in said
    assert "slightly optimistic" in said
    assert _run(folders, "--split", str(folders), "--side", "training") == 0
    assert "WARNING: prediction: 1 of 1 subjects evaluated were trained on." in capsys.readouterr().err
    assert _run(folders, "--split", str(folders), "--side", "test") == 65
    assert "nobody is on the test side" in capsys.readouterr().err
    assert _run(folders, "--participant-label", "case3") == 18
    assert "sub-case3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pred", "more", "words"),
    [
        (["a", "b"], [], "NAME=DIR"),
        (["x=a", "x=b"], [], "twice"),
        (["=a"], [], "NAME=DIR"),
        (["x=pred"], ["--baseline", "y"], "'y'"),
        (["x=pred"], ["--prob", "y=pred"], "'y'"),
        (["x=pred"], ["--profile", "nobody"], "nobody"),
        (["x=pred"], ["--random-seed", "-1"], "'-1'"),
        (["x=pred"], ["--side", "test"], "the training's with --split"),
        (["x=pred"], ["--split", "s", "--side", "train"], "train"),
        (["x=pred"], ["--participant-label", "a_b"], "'a_b'"),
    ],
)
def test_wrong_usage_is_code_64(folders, pred, more, words, capsys):
    assert _run(folders, *more, pred=pred) == 64
    assert words in capsys.readouterr().err


def test_absent_folders_are_code_66(folders, capsys):
    assert _run(folders, pred=[str(folders / "none")]) == 66
    assert "no such folder" in capsys.readouterr().err


def test_the_documentation_names_every_option_profile_and_file():
    text = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["evaluate", "--pred", "a", "--truth", "b", "--out", "c"])
    names = {f"--{name.replace('_', '-')}" for name in vars(options) if name != "run"}
    assert len(names) == 15
    assert not {word for word in (*names, *PROFILES) if f"`{word}`" not in text}
    for name in ("images", "lesions", "summary", "strata", "comparisons", "unpaired"):
        assert f"`{name}.tsv`" in text
