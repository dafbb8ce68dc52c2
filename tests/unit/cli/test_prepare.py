from __future__ import annotations

import json
from pathlib import Path

import pytest
from labelled_sessions import move_to_store, recipe, write_dataset, write_session

from bids_scseg.cli.tools import main
from bids_scseg.recipe.load import recipe_to_json


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bids")
    (root / "recipe.json").write_text(json.dumps(recipe_to_json(recipe())))
    return write_dataset(root)


def run(dataset: Path, out: Path, *more: str) -> int:
    words = ["prepare", str(dataset), str(out), "--labels", "derivatives/labels"]
    return main([*words, "--recipe", str(dataset / "recipe.json"), *more])


def test_good_sessions_and_then_the_exit_code_of_some_failed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, tmp_path, "--participant-label", "01", "sub-03") == 1
    shown = capsys.readouterr().err
    assert "[1/2] sub-01: done, Sag Ax, 2 lesions" in shown
    assert "sub-03: refused" in shown
    assert "1 of 2 sessions have no case" in shown
    assert "2 lesions, 492.1 mm³, 1 warning\n" in shown
    assert "no such session" not in shown
    assert (tmp_path / "prepared.tsv").is_file()
    assert run(dataset, tmp_path, "--participant-label", "01") == 0
    assert "sub-01: kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--cord", "other"), 64, "add -d other=PATH"),
        (("--jitter", "-1"), 64, "between 0 and 5"),
        (("--labels", "nowhere"), 66, "correct --labels"),
        (("--participant-label", "99"), 18, "99"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    dataset: Path, tmp_path: Path, words, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, tmp_path / "out", *words) == code
    assert message.lower() in capsys.readouterr().err.lower()
    assert not (tmp_path / "out").exists()


def test_cases_are_not_written_into_a_dataset(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, dataset) == 73
    assert "is a BIDS dataset" in capsys.readouterr().err


def test_labels_of_sessions_that_are_not_there_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "bids"
    write_session(root, "01")
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    (root / "recipe.json").write_text(json.dumps(recipe_to_json(recipe())))
    (root / "derivatives" / "labels" / "sub-77" / "anat").mkdir(parents=True)
    assert run(root, tmp_path / "out") == 0
    assert "labels of sub-77 are not used: the dataset has no such session" in capsys.readouterr().err


def test_links_out_of_the_dataset_are_followed_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "bids", tmp_path / "out"
    write_session(root, "01")
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    (root / "recipe.json").write_text(json.dumps(recipe_to_json(recipe())))
    move_to_store(root, tmp_path / "store", "sub-01/anat/*")
    assert run(root, out) == 1
    assert "sub-01: failed" in capsys.readouterr().err
    assert run(root, out, "--follow-links") == 0
    assert "sub-01: done, Sag Ax, 2 lesions" in capsys.readouterr().err
