from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_experiment import tiny_experiment, write_cases

from bids_scseg.errors import BusyError, MissingInputError
from bids_scseg.training import journal, runs
from bids_scseg.training.experiment import ExperimentConfig, Run, plan_runs
from bids_scseg.training.findings import write_findings
from bids_scseg.training.folder import Place
from bids_scseg.training.runs import run_all


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    return tiny_experiment(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def finished(config: ExperimentConfig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An experiment that ran without interruption, with test cases of its own."""
    test = write_cases(tmp_path_factory.mktemp("test"), 4, first=20)
    place = Place(config=config, data=data, test=test, out=tmp_path_factory.mktemp("out"))
    endings = run_all(place, plan_runs(config))
    assert [ending.error for ending in endings] == [None, None]
    return place


def test_runs_are_trained_judged_and_reported(finished: Place) -> None:
    summaries = write_findings(finished, wanted=plan_runs(finished.config))
    assert [(item.setting, item.arm) for item in summaries] == [
        ("T2Sag", "baseline"), ("T2Sag", "frozen"), ("all", "frozen"),
    ]  # fmt: skip
    out = finished.out
    with (out / "results.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == 3 * 4
    assert {row["case"] for row in rows} == {"sub-20", "sub-21", "sub-22", "sub-23"}
    assert {row["profile"] for row in rows} == {"walsh2024"}
    assert {row["f1"] for row in rows if row["case"] == "sub-20"} == {"n/a"}  # lesion-free
    with (out / "summary.tsv").open(newline="") as handle:
        table = list(csv.DictReader(handle, delimiter="\t"))
    assert table[0]["f1_paper"] == "0.5"
    assert table[0]["f1_undefined"] == "1"
    stated = json.loads((out / "summary.json").read_text())
    assert [run["arm"] for run in stated["runs"]] == ["baseline", "frozen"]
    page = (out / "report.html").read_text()
    assert "Tiny &amp; &lt;quick&gt;" in page
    assert "Frozen &lt;b&gt;" in page
    assert "not finished" not in page


def test_the_frozen_arm_has_the_baselines_encoder(finished: Place) -> None:
    runs = (Run(arm="baseline", seed=0), Run(arm="frozen", seed=0))
    baseline, frozen = (load_file(finished.folder(run) / "checkpoint.safetensors") for run in runs)
    own = [key for key in baseline if key.startswith("weights.encoders.T2Sag.")]
    assert own
    assert all(np.array_equal(baseline[key], frozen[key]) for key in own)


def test_the_threshold_comes_from_validation_cases(finished: Place) -> None:
    folder = finished.folder(Run(arm="frozen", seed=0))
    known = json.loads((folder / "evaluation.json").read_text())
    for found in known["settings"].values():
        assert found["validation"]["threshold"] == found["threshold"]
        assert found["threshold"] in (0.4, 0.6)
    split = json.loads((finished.out / "split.json").read_text())
    assert split["test"] == []
    assert json.loads((folder / "split.json").read_text())["validation"] == split["validation"]


@pytest.fixture
def interrupted() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_an_interrupted_experiment_goes_on_and_ends_with_the_same_weights(
    finished: Place, config: ExperimentConfig, tmp_path: Path, interrupted: pytest.MonkeyPatch
) -> None:
    place = replace(finished, out=tmp_path)
    original = journal.save_checkpoint

    def killed(*arguments, progress, **options) -> None:
        original(*arguments, progress=progress, **options)
        if progress.step == 2:
            raise RuntimeError("killed")

    interrupted.setattr(journal, "save_checkpoint", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run_all(place, plan_runs(config))
    run = Run(arm="baseline", seed=0)
    assert not (place.folder(run) / "trained.json").exists()
    interrupted.undo()
    # the next stop comes after training, before the run is judged
    interrupted.setattr(runs, "judge_cases", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_all(place, plan_runs(config, only=("baseline:0",)))
    assert (place.folder(run) / "trained.json").exists()
    interrupted.undo()
    interrupted.setattr(runs, "train", lambda *_, **__: pytest.fail("trained twice"))
    (ending,) = run_all(place, plan_runs(config, only=("baseline:0",)))
    assert ending.error is None
    assert "trained before" in ending.words
    one, two = (load_file(p.folder(run) / "checkpoint.safetensors") for p in (finished, place))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    summaries = write_findings(place, wanted=plan_runs(config))
    assert [item.arm for item in summaries] == ["baseline"]
    assert "1 run of this experiment is not finished" in (tmp_path / "report.html").read_text()


def test_a_run_that_needs_another_says_so_and_the_others_go_on(finished: Place, tmp_path: Path) -> None:
    place = replace(finished, out=tmp_path)
    (ending,) = run_all(place, plan_runs(place.config, only=("frozen:0",)))
    assert isinstance(ending.error, MissingInputError)
    assert "run --only baseline:0 first" in ending.words.lower()


def test_a_run_under_way_is_left_alone(finished: Place) -> None:
    run = Run(arm="baseline", seed=0)
    with runs._lock(finished.folder(run), run):
        (ending,) = run_all(finished, [run])
    assert isinstance(ending.error, BusyError)


def test_an_arm_that_was_trained_otherwise_is_no_longer_this_arm(finished: Place) -> None:
    arms = [replace(arm, training={**arm.training, "loss": {"smooth": 1.0}}) for arm in finished.config.arms]
    (ending,) = run_all(
        replace(finished, config=replace(finished.config, arms=tuple(arms))), [Run(arm="baseline", seed=0)]
    )
    assert "another configuration of this arm" in ending.words
