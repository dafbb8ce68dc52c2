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
    assert len(names) == 12
    assert not {word for word in (*names, *PROFILES) if f"`{word}`" not in text}
    for name in ("images", "lesions", "summary", "strata", "comparisons", "unpaired"):
        assert f"`{name}.tsv`" in text
