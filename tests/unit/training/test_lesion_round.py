"""The script that trains the packaged lesion model: who takes part where, and what it prints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from small_cases import make_case, save

from bids_scseg.files import read_toml

ROOT = Path(__file__).parents[3]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train() -> ModuleType:
    return script("train_lesion")


def case(folder: Path, subject: str) -> None:
    place = folder / f"sub-{subject}_ses-1"
    place.mkdir(parents=True)
    (place / "case.json").write_text(json.dumps({"subject": subject}), encoding="utf-8")


@pytest.fixture
def work(tmp_path: Path, train: ModuleType):  # type: ignore[no-untyped-def]
    """Data of eighty computed subjects, and one each of the demo, the phantoms and real people."""
    for number in range(80):
        case(tmp_path / "prepared" / "more", f"{number:04d}")
    for part, subject in (("demo", "01"), ("phantoms", "0300"), ("real", "unf01")):
        case(tmp_path / "prepared" / part, subject)
    (tmp_path / "done").mkdir()
    for name in ("prepared-real", "bids-real"):
        (tmp_path / "done" / name).touch()
    return train.Work(tmp_path, real=tmp_path, jobs=1)


def subjects(train: ModuleType, folder: Path) -> set[str]:
    return {record["subject"] for record in train.cases(folder)}


def test_nobody_who_is_held_out_is_trained_on(train, work, monkeypatch) -> None:
    monkeypatch.setattr(train, "train", lambda work, name, *_, **__: work.root / name)
    mixed = train.implants(work)
    train.stages(work, mixed)
    held = set(train.aside(work))
    assert held == {f"{number:04d}" for number in range(74, 80)}
    assert not held & subjects(train, work.root / "phantoms")
    assert held < subjects(train, mixed)
    train.last_stage(work, work.root, mixed, with_all=False)
    splits = {file.stem: json.loads(file.read_text()) for file in (work.root / "configs").glob("split-*")}
    assert sorted(splits) == ["split-a", "split-b", "split-c", "split-d"]
    assert all(set(split["validation"]) == held for split in splits.values())
    assert splits["split-a"]["test"] == ["unf01"]
    assert splits["split-b"]["test"] == []


def test_a_model_of_all_subjects_is_made_on_demand(train, work, monkeypatch) -> None:
    monkeypatch.setattr(train, "train", lambda work, name, *_, **__: work.root / name)
    models, _ = train.last_stage(work, work.root, train.implants(work), with_all=True)
    assert list(models) == ["all", "a", "b", "c", "d"]


def test_data_with_the_wrong_people_are_refused(train, work) -> None:
    mixed = train.implants(work)
    train.check_people(work, mixed)
    case(mixed, "fakelesion01")
    with pytest.raises(SystemExit, match="fakelesion01"):
        train.check_people(work, mixed)
    case(work.root / "phantoms", "0079")
    with pytest.raises(SystemExit, match="0079"):
        train.check_people(work, work.root / "prepared" / "real")


def test_excluded_people_are_judged_by_no_model(train) -> None:
    reasons = json.loads((train.CONFIGS / "exclude.json").read_text(encoding="utf-8"))
    assert "blob" in reasons["fakelesion01"]
    assert not set(reasons) & {name for people in train.read_folds().values() for name in people}
    assert train.left_out() == ["--exclude-participant-label", *sorted(reasons)]


def test_labels_of_the_computed_sets_do_not_collide() -> None:
    ranges = []
    for file in ("walsh2024-data.toml", "cord-lesion/phantoms.toml"):
        data = read_toml(ROOT / "configs" / file)
        first = data.get("first", 0)
        ranges.append(set(range(first, first + data["subjects"])))
    assert not ranges[0] & ranges[1]


def test_the_finishing_command_has_all_its_numbers(train) -> None:
    """At a threshold of 0.9 log-odds are 2.197: half of it less 1 is 0.0986, a probability of 0.525.

    At 0.99 they are 4.595: 1.2976, a probability of 0.785.
    """
    figures = {"of all folds": [0.9, 20.0, 0.99], "scale and shift": {"of all folds": [0.5, -1.0]}}
    lines = list(train.finishing({"a": Path("A"), "b": Path("B")}, figures))
    assert lines[-1].endswith(
        "--scale 0.50000 --shift -1.00000 --threshold 0.52463 --min-volume 20"
        " --seed-threshold 0 --seed-threshold-alone 0.78542"
    )
    figures["of all folds"][2] = 0.0  # no rule: said, for the first of the bundles may have one
    assert list(train.finishing({"a": Path("A")}, figures))[-1].endswith(" --seed-threshold-alone 0")
    assert "MODEL A/bundle B/bundle --card" in lines[-1]
    assert "implant_folds.py" in " ".join(lines[:-1])


# -- test lesions ----------------------------------------------------------------------------------


def real(folder: Path, subject: str) -> None:
    """A cord of level 50 and spread 2 in fluid of 200, 1 mm, with its mask."""
    rng = np.random.default_rng(int(subject))
    cord = np.zeros((24, 24, 60), np.uint8)
    cord[7:17, 7:17] = 1
    image = np.where(cord, 50, 200) + rng.normal(0, 2, cord.shape)
    name = f"sub-{subject}_T2w"
    anat, truth = (base / f"sub-{subject}" / "anat" for base in (folder, folder / "derivatives" / "labels"))
    for place in (anat, truth):
        place.mkdir(parents=True)
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), anat / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(cord, np.eye(4)), truth / f"{name}_label-SC_seg.nii.gz")


def test_images_without_a_cord_mask_get_the_finders(tmp_path, train, monkeypatch) -> None:
    source = tmp_path / "real"
    for subject in ("1", "2"):
        real(source, subject)
    description = json.dumps({"Name": "cords", "BIDSVersion": "1.10.0"})
    (source / "dataset_description.json").write_text(description, encoding="utf-8")
    (source / "derivatives" / "labels" / "sub-2" / "anat" / "sub-2_T2w_label-SC_seg.nii.gz").unlink()
    monkeypatch.setattr(
        train, "load_finder", lambda *_: lambda values, grid: (values < 100).astype(np.float32)
    )
    labels = train.cords(train.Work(tmp_path / "work", real=source, jobs=1)) / "derivatives" / "labels"
    found = nib.load(labels / "sub-2" / "anat" / "sub-2_T2w_label-SC_seg.nii.gz")
    kept = nib.load(labels / "sub-1" / "anat" / "sub-1_T2w_label-SC_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(kept.dataobj))
    assert not list(
        (source / "derivatives" / "labels" / "sub-2" / "anat").iterdir()
    )  # REAL itself is left alone


def test_a_model_judges_lesions_from_each_sequence_and_from_all(tmp_path, monkeypatch, capsys) -> None:
    small, names = make_case(), ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")
    none = np.zeros((4, *small.label.shape), small.image.dtype)
    case = make_case(
        sequences=names,
        available=np.array([name in ("T2Sag", "STIR") for name in names]),
        image=np.concatenate([small.image[:2], none]),
        coverage=np.concatenate([small.coverage[:2], none.astype(bool)]),
    )
    save(tmp_path / "prepared" / "sub-01", case)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    arguments = ["x", str(tmp_path / "prepared"), str(tmp_path / "out"), "--model", "cord-lesion"]
    monkeypatch.setattr("sys.argv", arguments)
    script("implants").main()
    rows = (tmp_path / "out" / "implants.csv").read_text(encoding="utf-8")
    assert [line.split(",")[2] for line in rows.splitlines()[1:]] == ["T2Sag", "STIR", "T2Sag+STIR"]
    assert "| T2Sag+STIR | 1 |" in capsys.readouterr().out


def test_leaving_people_out_changes_no_other_image(tmp_path, monkeypatch) -> None:
    source = tmp_path / "real"
    for subject in ("1", "2"):
        real(source, subject)
    config = json.loads((ROOT / "configs" / "independent-implants.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config, "draws": 1, "per_mm": 0.05}))
    implants = script("independent_implants")
    for out, options in (("all", []), ("one", ["--exclude-participant-label", "sub-2"])):
        arguments = ["x", str(source), str(tmp_path / out), "--config", str(file), *options]
        monkeypatch.setattr("sys.argv", arguments)
        implants.main()
    images = sorted((tmp_path / "one").rglob("*.nii.gz"))
    assert images and not list((tmp_path / "one").glob("sub-2*"))
    assert list((tmp_path / "all").glob("sub-2*"))
    for image in images:
        other = tmp_path / "all" / image.relative_to(tmp_path / "one")
        assert np.array_equal(nib.load(image).get_fdata(), nib.load(other).get_fdata())
    found = script("realised_contrast").by_suffix(tmp_path / "one")
    assert list(found) == ["T2w"] and len(found["T2w"])
    assert (found["T2w"] > 0).all()


def test_contrast_is_that_of_the_cords_inside() -> None:
    """12 above a level of 50 with a spread of 2: 6 spreads, 24 %, in a mask that is a voxel too wide."""
    rng = np.random.default_rng(0)
    cord = np.zeros((24, 24, 60), bool)
    cord[7:17, 7:17] = True
    lesion = np.zeros_like(cord)
    lesion[10:13, 10:13, 20:30] = True
    image = np.where(cord, 50, 200) + 12 * lesion + rng.normal(0, 2, cord.shape)
    wide = np.zeros_like(cord)
    wide[6:18, 6:18] = True
    contrasts = script("realised_contrast").contrasts
    (got,) = contrasts(image, wide, lesion, np.eye(4))
    assert got == pytest.approx([6, 24], rel=0.05)
    assert not len(contrasts(image, wide, np.zeros_like(cord), np.eye(4)))
    lines = list(script("realised_contrast").table({"T2w": np.array([[6.0, 24.0]] * 3)}))
    assert lines[-1] == "| T2w | 3 | 6.0 (6.0 to 6.0) | 24.0 (24.0 to 24.0) |"
