from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_experiment import tiny_experiment, write_cases

from bids_scseg.errors import BusyError, DataError, DiskFullError, MissingInputError, SessionError
from bids_scseg.training import journal, runs
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.experiment import ExperimentConfig, Run, plan_runs
from bids_scseg.training.findings import write_findings
from bids_scseg.training.fit import check_same_run
from bids_scseg.training.folder import Place
from bids_scseg.training.runs import run_all, run_config


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
    assert "(the last candidate)" in page  # there are two
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


class Killed(BaseException):
    """Stands for the end of a process."""


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
            raise Killed

    interrupted.setattr(journal, "save_checkpoint", killed)
    with pytest.raises(Killed):
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


def test_an_error_that_nobody_foresaw_ends_its_run_alone(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = replace(finished, out=tmp_path)

    def broken(config: TrainingConfig, *_: object, out: Path, **__: object) -> None:
        raise RuntimeError("a\nsize mismatch")

    monkeypatch.setattr(runs, "train", broken)
    wanted = [Run(arm="baseline", seed=0), Run(arm="extra", seed=0)]
    endings = run_all(place, wanted)
    assert [ending.run for ending in endings] == wanted
    assert all(isinstance(ending.error, SessionError) for ending in endings)
    assert "unexpected RuntimeError in baseline:0: size mismatch" in endings[0].words
    assert "in broken" in (place.folder(wanted[0]) / "traceback.txt").read_text()
    monkeypatch.setattr(runs, "train", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    (full,) = run_all(place, wanted[:1])
    assert isinstance(full.error, DiskFullError)
    monkeypatch.setattr(runs, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_all(place, wanted)


class BreakingPool:
    """Whose first task kills its process, so that it takes no third one."""

    def __init__(self, **_: object) -> None:
        self.tasks = 0

    def __enter__(self) -> BreakingPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, task: Callable[..., object], *_: object) -> Future[object]:
        self.tasks += 1
        if self.tasks > 2:
            raise BrokenProcessPool
        future: Future[object] = Future()
        if self.tasks == 1:
            future.set_exception(BrokenProcessPool())
        return future


def test_every_run_of_a_broken_pool_has_an_ending(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ProcessPoolExecutor", BreakingPool)
    wanted = [Run(arm=arm, seed=seed) for seed in (0, 1) for arm in ("baseline", "extra")]
    endings = run_all(finished, wanted, jobs=2)
    assert sorted(ending.run for ending in endings) == sorted(wanted)
    assert all("the process was killed" in ending.words for ending in endings)


def test_a_run_recorded_before_an_option_was_there_is_still_that_run(finished: Place, tmp_path: Path) -> None:
    place = replace(finished, out=Path(shutil.copytree(finished.out, tmp_path / "copy")))
    run = Run(arm="baseline", seed=0)
    record = json.loads((place.folder(run) / "trained.json").read_text())
    del record["configuration"]["sampling"]["shown_lesions"]
    (place.folder(run) / "trained.json").write_text(json.dumps(record))
    (ending,) = run_all(place, [run])
    assert "trained before" in ending.words


def test_a_moved_experiment_goes_on(finished: Place, tmp_path: Path) -> None:
    moved = replace(finished, out=Path(shutil.copytree(finished.out, tmp_path / "moved")))
    for arm in ("baseline", "frozen"):
        run = Run(arm=arm, seed=0)
        check_same_run(moved.folder(run), run_config(moved, run))
    frozen, other = Run(arm="frozen", seed=0), tmp_path / "other"
    weights = load_file(moved.folder(Run(arm="baseline", seed=0)) / "checkpoint.safetensors")
    other.mkdir()
    changed = {name: np.asarray(value + 1) for name, value in weights.items()}
    save_file(changed, other / "checkpoint.safetensors")
    config = run_config(moved, frozen)
    with pytest.raises(DataError, match="source_sha256"):
        check_same_run(moved.folder(frozen), replace(config, arm=replace(config.arm, source=str(other))))
