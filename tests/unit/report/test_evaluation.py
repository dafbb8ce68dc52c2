"""Tables, JSON and page of an evaluation of small folders."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.evaluate import Request, evaluate_folders
from bids_scseg.measure.evaluation import evaluate_all
from bids_scseg.report.evaluation import write_evaluation
from bids_scseg.report.evaluation_figures import short

EVIL = "<script>alert(1)</script> $x"
SHAPE = (6, 6, 40)


def _save(path, *ranges, value=1):
    data = np.zeros(SHAPE, np.float32)
    for start, stop in ranges:
        data[2:4, 2:4, start:stop] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1, 2, 1])), path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three subjects, one of them lesion-free; two methods, one with probabilities; one file alone."""
    root = tmp_path_factory.mktemp("evaluation")
    for n, (truth, prediction) in enumerate(
        [([(5, 15)], [(5, 15)]), ([(5, 15), (20, 30)], [(5, 15)]), ([], [(5, 9)])], start=1
    ):
        name = f"sub-{n}/sub-{n}_label-lesion"
        _save(root / "truth" / f"{name}_mask.nii.gz", *truth)
        _save(root / "ours" / f"{name}_mask.nii.gz", *prediction)
        _save(root / "ours" / f"{name}_probseg.nii.gz", *prediction, value=0.9)
        _save(root / "other" / f"{name}_mask.nii.gz", (0, 3))
    _save(root / "truth/sub-4/sub-4_label-lesion_mask.nii.gz", (5, 15))
    (root / "truth/participants.tsv").write_text(f"participant_id\tsite\nsub-1\t{EVIL}\nsub-2\tB\nsub-3\tB\n")
    found = evaluate_folders(
        Request(
            predictions={"ours": root / "ours", EVIL: root / "other"},
            truth=root / "truth",
            profile="walsh2024",
            by=("site",),
            baseline="ours",
        )
    )
    write_evaluation(found, root / "out")
    return root / "out", found


def _rows(path):
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.parametrize("name", ["images", "lesions", "summary", "strata", "comparisons", "unpaired"])
def test_every_row_names_profile_and_space_and_every_column_its_meaning(written, name):
    rows = _rows(written[0] / f"{name}.tsv")
    assert rows
    assert all((row["profile"], row["space"]) == ("walsh2024", "native") for row in rows)
    described = json.loads((written[0] / f"{name}.json").read_text())
    assert list(rows[0]) == list(described)
    assert {(row["split_side"], row["split"]) for row in rows} == {("n/a", "n/a")}


def test_tables_hold_the_numbers(written):
    images = {(row["prediction"], row["participant_id"]): row for row in _rows(written[0] / "images.tsv")}
    assert len(images) == 6
    assert images["ours", "sub-1"]["f1"] == "1"
    assert images["ours", "sub-2"]["sensitivity"] == "0.5"
    assert images["ours", "sub-3"]["f1"] == "n/a"
    assert images["ours", "sub-3"]["specificity"] == "0"
    summary = {
        (row["prediction"], row["value"], row["metric"]): row for row in _rows(written[0] / "summary.tsv")
    }
    f1 = summary["ours", "all", "f1"]
    assert (f1["images"], f1["undefined"], f1["subjects"]) == ("3", "1", "2")
    assert float(f1["mean"]) == pytest.approx((1 + 2 / 3) / 2, abs=1e-4)
    unpaired = _rows(written[0] / "unpaired.tsv")
    assert [row["state"] for row in unpaired] == ["missing", "missing"]
    assert unpaired[0]["file"] == "sub-4/sub-4_label-lesion_mask.nii.gz"


def test_json_holds_everything(written):
    data = json.loads((written[0] / "evaluation.json").read_text())
    assert (data["profile"], data["space"], data["settings"]["baseline"]) == ("walsh2024", "native", "ours")
    assert data["counts"]["ours"]["pairs"] == 3
    assert data["counts"]["ours"]["truth_missing"] == 1
    ours, other = data["methods"]
    # Each predicted voxel is of probability 0.9; 80 of the 96 are lesion.
    assert ours["calibration"]["expected_error"] == pytest.approx(0.9 - 80 / 96, abs=1e-4)
    assert other["froc"] is None
    assert data["comparisons"][0]["p"] is None
    assert "differ" in data["comparisons"][0]["p_reason"]


def test_the_page_holds_all_and_fetches_nothing(written):
    page = (written[0] / "evaluation.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<img") == 4  # scores, size, volumes, probabilities
    for words in ("walsh2024", "native", "1 reference masks and 0 predictions missing", "Holm"):
        assert words in page
    for section in re.findall(r'<a href="#(\w+)">', page):
        assert f'id="{section}"' in page


def test_side_and_split_stand_in_every_file(written, tmp_path):
    request = written[1].request
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": ["2"], "validation": [], "test": ["1", "3", "9"]}))
    found = evaluate_folders(replace(request, split=split))
    page = write_evaluation(found, tmp_path / "out").read_text(encoding="utf-8")
    assert "test side of split.json" in page
    assert f"Subjects: 2 of 4 with reference masks, of the test side of {split}." in page
    assert "On no side of it, and not evaluated: sub-4." in page
    assert "1 of 3 subjects asked for have no reference mask" in page
    for name in ("images", "lesions", "summary"):
        rows = _rows(tmp_path / "out" / f"{name}.tsv")
        assert {(row["split_side"], row["split"]) for row in rows} == {("test", str(split))}
    assert {row["training_side"] for row in _rows(tmp_path / "out" / "images.tsv")} == {"test"}
    subjects = json.loads((tmp_path / "out" / "evaluation.json").read_text())["subjects"]
    assert (subjects["side"], subjects["split"]) == ("test", str(split))
    assert subjects["without_reference"] == ["sub-9"]
    assert subjects["predictions"]["ours"]["trained_on"] == []


def test_a_page_without_lesions_or_maps(written, tmp_path):
    results = [result for result in written[1].evaluation.results if result.key.subject == "sub-3"]
    results = [result for result in results if result.key.prediction != "ours"]
    few = replace(
        written[1],
        evaluation=evaluate_all(results, space="native"),
        facts=tuple(f for f in written[1].facts if f.pair.truth.subject == "sub-3")[1:],
    )
    page = write_evaluation(few, tmp_path).read_text(encoding="utf-8")
    assert "neither FROC nor calibration" in page
    assert "No baseline was named" in page


def test_names_fit_and_are_no_formulas():
    assert short("a" * 30) == "a" * 17 + "…"
    assert short("$x") == r"\$x"
