from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
from labelled_sessions import move_to_store, recipe, write_dataset, write_session

from bids_scseg.cli.prepare import preparation
from bids_scseg.cli.tools import build_tools_parser, main
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


def test_a_labels_folder_without_a_map_costs_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped path that exists; here, the one above."""
    out = tmp_path / "out"
    run(dataset, out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert run(dataset, out, "--labels", "derivatives") == 66
    shown = capsys.readouterr().err
    for words in (f"{dataset}/derivatives: no session has a lesion map here (4 looked at;",
                  "_label-lesion_mask.nii.gz", "Correct --labels"):  # fmt: skip
        assert words in shown
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_strangers_in_a_labels_folder_without_a_map_are_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels" / "sub-001").mkdir(parents=True)
    assert run(dataset, tmp_path / "out", "--labels", str(tmp_path / "labels")) == 66
    assert "labels of sub-001 are not used: the dataset has no such session" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cases_that_were_kept_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "bids", tmp_path / "out"
    root.mkdir()
    write_dataset(root)
    (root / "recipe.json").write_text(json.dumps(recipe_to_json(recipe())))
    run(root, out, "--participant-label", "01", "02")
    (root / "derivatives/labels/sub-01/anat/sub-01_acq-sag_T2w_lesion-manual.nii.gz").unlink()
    assert run(root, out) == 1
    shown = capsys.readouterr().err
    assert "sub-01: failed" in shown and "earlier case kept" in shown
    assert "3 of 4 sessions have no case of this run (1 of them an earlier one, which was kept)" in shown
    assert (out / "sub-01" / "case.json").is_file()


STAND_IN = """#!{python}
import sys
from pathlib import Path
import nibabel as nib
task, _, image, _, out = sys.argv[1:]
assert task == "spinalcord"
with open({calls!r}, "a") as calls:
    print(Path(image).name, file=calls)
stem = Path(image).name.removesuffix("_T2w.nii.gz")
nib.save(nib.load(next(Path({labels!r}).rglob(stem + "_label-SC_mask.nii.gz"))), out)
"""


@pytest.fixture
def calls(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers as ``sct_deepseg spinalcord`` does; what it was called for."""
    tool, calls = tmp_path / "bin" / "sct_deepseg", tmp_path / "calls"
    tool.parent.mkdir()
    labels = str(dataset / "derivatives" / "labels")
    tool.write_text(STAND_IN.format(python=sys.executable, labels=labels, calls=str(calls)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return calls


@pytest.mark.parametrize(
    ("words", "called", "recorded"),
    [
        (("--cord", "sct"), ["sub-01_acq-ax_T2w.nii.gz", "sub-01_acq-sag_T2w.nii.gz"], "sct"),
        ((), ["sub-01_acq-ax_T2w.nii.gz"], "masks+sct"),
    ],
)
def test_the_toolbox_finds_cords_where_the_app_would_ask_it(
    dataset: Path, tmp_path: Path, calls: Path, words: tuple[str, ...], called: list[str], recorded: str
) -> None:
    """Alone; or, by default, where it is installed and an image has no mask."""
    labels = dataset / "derivatives" / "labels"
    given = tmp_path / "given"  # without the axial scan's cord
    for path in (labels / "sub-01" / "anat").glob("*acq-sag*"):
        copy = given / path.relative_to(labels)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    out = tmp_path / "out"
    more = ("--labels", str(given), "--participant-label", "01", "--no-registration")
    assert run(dataset, out, *more, *words) == 0
    assert sorted(calls.read_text().split()) == called
    assert json.loads((out / "sub-01" / "case.json").read_text())["cord_method"] == recorded


def test_the_toolbox_can_be_handed_to_workers(dataset: Path, tmp_path: Path, calls: Path) -> None:
    words = ["prepare", str(dataset), str(tmp_path / "out"), "--labels", "derivatives/labels"]
    words += ["--recipe", str(dataset / "recipe.json"), "--cord", "sct"]
    asked = preparation(build_tools_parser().parse_args(words))
    handed = pickle.loads(pickle.dumps(asked)).tool  # noqa: S301
    assert (handed.origin, handed.sha256) == ("sct", asked.tool.sha256)
    image = dataset / "sub-01" / "anat" / "sub-01_acq-ax_T2w.nii.gz"
    assert handed.segment(image, tmp_path).is_file()


def test_a_toolbox_that_is_not_there(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(dataset, tmp_path / "out", "--cord", "sct") == 127
    assert "sct_deepseg is not on the PATH" in capsys.readouterr().err
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
