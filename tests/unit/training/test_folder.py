from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import NAMES, SIZE, tiny_experiment, write_cases

from bids_scseg.errors import BusyError, DataError
from bids_scseg.files import lock
from bids_scseg.training import folder
from bids_scseg.training.cases import load_case
from bids_scseg.training.experiment import AvailabilityPlan, ExperimentConfig
from bids_scseg.training.folder import Place, alike_labels, open_experiment, sequences_left


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    return tiny_experiment(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def opened(config: ExperimentConfig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An experiment that has begun, with test cases of its own."""
    test = write_cases(tmp_path_factory.mktemp("test"), 4, first=20)
    place = Place(config=config, data=data, test=test, out=tmp_path_factory.mktemp("out"))
    open_experiment(place)
    return place


def test_sessions_keep_the_anchor_and_some_others(opened: Place) -> None:
    kept = [load_case(path.parent, sequences=NAMES).available for path in opened.cases.rglob("case.json")]
    before = [load_case(path.parent, sequences=NAMES).available for path in opened.data.rglob("case.json")]
    assert len(kept) == len(before) == 10
    assert all(one[0] for one in kept)
    assert 10 < sum(one.sum() for one in kept) < sum(one.sum() for one in before)


def test_a_folder_belongs_to_one_experiment(opened: Place, tmp_path: Path) -> None:
    longer = replace(opened.config, training={**opened.config.training, "iterations": 9})
    with pytest.raises(DataError, match="another training"):
        open_experiment(replace(opened, config=longer))
    faster = replace(opened.config, training={**opened.config.training, "threads": 2})
    open_experiment(replace(opened, config=faster))
    other = write_cases(tmp_path, 9)
    with pytest.raises(DataError, match="another data"):
        open_experiment(replace(opened, data=other))
    with pytest.raises(DataError, match="test cases are the training cases"):
        open_experiment(replace(opened, test=opened.data))
    with pytest.raises(DataError, match="among the prepared cases"):
        open_experiment(replace(opened, out=opened.data / "experiment"))


def test_the_same_data_prepared_anew_go_on_and_others_do_not(opened: Place, tmp_path: Path) -> None:
    place = replace(opened, data=shutil.copytree(opened.data, tmp_path / "data"), out=tmp_path / "out")

    def change(**values: object) -> None:
        for file in place.data.rglob("case.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    change(fingerprint="before", geometry={"angle": 0.1})
    open_experiment(place)
    change(fingerprint="after", geometry={"angle": 0.1 + 1e-12})
    open_experiment(place)
    change(volume_mm3=12.0)
    with pytest.raises(DataError, match="another data"):
        open_experiment(place)


def test_no_case_is_trained_on_and_tested(opened: Place, data: Path, tmp_path: Path) -> None:
    copied = _copied(data / "sub-04", tmp_path / "test")
    record = copied / "sub-04" / "case.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "fingerprint": "prepared anew"}))
    for test in (data / "sub-03", copied):
        with pytest.raises(DataError, match=r"sub-0[34]: a test case is a training case"):
            open_experiment(replace(opened, test=test, out=tmp_path / "out"))
    other = _copied(data / "sub-05", tmp_path / "other")
    np.save(other / "sub-05" / "label.npy", np.ones(SIZE, np.uint8), allow_pickle=False)
    open_experiment(replace(opened, test=other, out=tmp_path / "out", other_people=True))


def test_nobody_is_trained_on_and_tested_with_another_session(opened: Place, tmp_path: Path) -> None:
    test = write_cases(tmp_path / "test", 6, first=8)
    for case in test.iterdir():  # another session: other images, other lesions, the same label
        np.save(case / "label.npy", np.ones(SIZE, np.uint8), allow_pickle=False)
    place = replace(opened, test=test, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"test: 2 subjects are also in .*: 08, 09; .*say --other-people"):
        open_experiment(place)
    assert not (place.out / "experiment.json").exists()
    said = replace(place, other_people=True)
    open_experiment(said)
    assert alike_labels(said) == 2
    assert alike_labels(opened) == 0


def test_what_training_is_left_with_is_counted(opened: Place) -> None:
    training = json.loads((opened.out / "split.json").read_text())["training"]
    counts = sequences_left(opened)
    assert list(counts) == ["T2Sag", "STIR", "T2StarAx"]  # no session has others
    assert counts["T2Sag"] == (len(training), len(training))
    cases = [load_case(opened.cases / f"sub-{name}", sequences=NAMES) for name in training]
    assert counts["STIR"] == (sum(bool(case.available[1]) for case in cases), len(training))
    whole = replace(opened.config, availability=AvailabilityPlan())
    assert sequences_left(replace(opened, config=whole)) == {}


def _copied(case: Path, folder: Path) -> Path:
    shutil.copytree(case, folder / case.name)
    return folder


def test_without_test_cases_some_subjects_are_held_out(
    config: ExperimentConfig, data: Path, tmp_path: Path
) -> None:
    place = Place(config=config, data=data, test=None, out=tmp_path)
    open_experiment(place)
    split = json.loads((tmp_path / "split.json").read_text())
    sides = [set(split[side]) for side in ("training", "validation", "test")]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    few = write_cases(tmp_path / "few", 1)
    with pytest.raises(DataError, match="Prepare more subjects"):
        open_experiment(replace(place, data=few, out=tmp_path / "out"))


def test_what_is_there_already_is_not_written_again(opened: Place) -> None:
    files = [opened.out / "experiment.json", opened.out / "split.json", *opened.cases.rglob("case.json")]
    before = [file.stat().st_ino for file in files]
    open_experiment(opened)
    assert [file.stat().st_ino for file in files] == before


def test_one_process_opens_at_a_time(opened: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0.0)
    with lock(opened.out / folder.LOCK), pytest.raises(BusyError, match="opening this experiment"):
        open_experiment(opened)
    open_experiment(opened)


@pytest.mark.parametrize("content", ["{", "[]", '{"case": "a", "subject": "a"}'])
def test_a_malformed_case_is_named(opened: Place, tmp_path: Path, content: str) -> None:
    data = write_cases(tmp_path / "data", 3)
    (data / "sub-01" / "case.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"sub-01/case\.json: malformed"):
        open_experiment(replace(opened, data=data, out=tmp_path / "out"))
