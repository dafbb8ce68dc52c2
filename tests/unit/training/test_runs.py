from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_jobs import play
from safetensors.numpy import load_file, save_file
from tiny_experiment import tiny_experiment, write_cases

from bids_scseg.errors import BusyError, DataError, DiskFullError, MissingInputError, SessionError
from bids_scseg.network.build import build_network, parameter_count
from bids_scseg.network.cost import forward_flops
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training import journal, runs
from bids_scseg.training.config import TrainingConfig, configured_recipe
from bids_scseg.training.experiment import ExperimentConfig, Run, plan_runs
from bids_scseg.training.findings import write_findings
from bids_scseg.training.fit import check_same_run
from bids_scseg.training.folder import Place, sequences_left
from bids_scseg.training.runs import Ending, run_all, run_config


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
    # half of the sessions' other sequences, of training subjects only
    counts = sequences_left(finished)
    assert f"STIR {counts['STIR'][0]} of {counts['STIR'][1]}" in page
    assert "arm.source: the run of baseline with the same seed" in page
    assert "Tiny &amp; &lt;quick&gt;" in page
    assert "Frozen &lt;b&gt;" in page
    assert "(the last candidate)" in page  # there are two
    assert "not finished" not in page


def test_runs_say_what_their_networks_cost(finished: Place) -> None:
    write_findings(finished)
    with (finished.out / "summary.tsv").open(newline="") as handle:
        table = {(row["setting"], row["arm"]): row for row in csv.DictReader(handle, delimiter="\t")}
    weights = {arm: int(row["parameters"]) for (setting, arm), row in table.items() if setting == "T2Sag"}
    network = configured_recipe(
        run_config(finished, Run(arm="frozen", seed=0)), load_recipe("cord-lesion")
    ).network  # fmt: skip
    assert weights["frozen"] == parameter_count(build_network(network)) > weights["baseline"]
    assert int(table["all", "frozen"]["flops"]) == forward_flops(network, (16, 16, 16))
    assert all(float(row["seconds_per_case"]) > 0 for row in table.values())
    summaries = json.loads((finished.out / "summary.json").read_text())["summaries"]
    assert all(item["flops"] > 0 and item["seconds_per_case"] > 0 for item in summaries)
    assert "GFLOPs a patch" in (finished.out / "report.html").read_text()


def test_runs_judged_before_costs_were_recorded_are_reported(finished: Place, tmp_path: Path) -> None:
    place = replace(finished, out=Path(shutil.copytree(finished.out, tmp_path / "copy")))
    for file in place.out.rglob("evaluation.json"):
        known = json.loads(file.read_text())
        for found in (known, *known["settings"].values()):
            for key in ("flops", "patch_vox", "seconds_per_case"):
                found.pop(key, None)
        file.write_text(json.dumps(known))
    (ending,) = run_all(place, [Run(arm="frozen", seed=0)])
    assert ending.error is None
    assert "flops" not in json.loads((place.folder(ending.run) / "evaluation.json").read_text())
    write_findings(place)
    with (place.out / "summary.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert {(row["flops"], row["seconds_per_case"]) for row in rows} == {("n/a", "n/a")}
    assert "GFLOPs" not in (place.out / "report.html").read_text()


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


class Pool:
    """Whose processes all die with one that does a run of ``extra``; others end only where they are alone."""

    def __init__(self, workers: int) -> None:
        self.workers, self.open, self.broken = workers, list[Future[Ending]](), False
        self._processes: dict[int, object] = {}

    def submit(self, task: object, place: Place, run: Run) -> Future[Ending]:
        if self.broken:
            raise BrokenProcessPool
        future: Future[Ending] = Future()
        self.open.append(future)
        if run.arm == "extra" and len(self.open) == self.workers:
            self.broken = True
            for each in self.open:
                each.set_exception(BrokenProcessPool())
        elif self.workers == 1 or run.arm == "frozen":
            future.set_result(Ending(run=run, words=f"{run.label}: done"))
        return future


def test_a_killed_process_is_its_runs_failure_and_nobody_elses(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    @contextmanager
    def pool(workers: int) -> Iterator[Pool]:
        made.append(workers)
        yield Pool(workers)

    monkeypatch.setattr(runs, "worker_pool", pool)
    # the baseline is open when "extra" kills a process, and "frozen" waits for it
    wanted = [Run(arm=arm, seed=0) for arm in ("baseline", "extra", "frozen")]
    endings = run_all(finished, wanted, jobs=2)
    assert [(ending.run.arm, ending.error is None) for ending in endings] == [
        ("baseline", True), ("extra", False), ("frozen", True),
    ]  # fmt: skip
    assert made == [2, 1, 1, 2]
    assert "extra:0: the process was killed, alone too, most likely because memory" in endings[1].words


@pytest.mark.slow
def test_processes_that_are_really_killed(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "do_run", play)
    wanted = [Run(arm=arm, seed=0) for arm in ("extra", "baseline", "frozen")]
    endings = run_all(replace(finished, out=tmp_path), wanted, jobs=2)
    assert [(ending.run.arm, ending.error is None) for ending in endings] == [
        ("extra", False), ("baseline", True), ("frozen", True),
    ]  # fmt: skip


def test_a_run_recorded_before_an_option_was_there_is_still_that_run(finished: Place, tmp_path: Path) -> None:
    place = replace(finished, out=Path(shutil.copytree(finished.out, tmp_path / "copy")))
    run = Run(arm="baseline", seed=0)
    record = json.loads((place.folder(run) / "trained.json").read_text())
    del record["configuration"]["sampling"]["shown_lesions"]
    (place.folder(run) / "trained.json").write_text(json.dumps(record))
    (ending,) = run_all(place, [run])
    assert "trained before" in ending.words


def test_a_training_goes_on_only_as_it_began_also_in_options_that_it_did_not_know(
    finished: Place, tmp_path: Path
) -> None:
    place = replace(finished, out=Path(shutil.copytree(finished.out, tmp_path / "copy")))
    run = Run(arm="baseline", seed=0)
    config, file = run_config(place, run), place.folder(run) / "config.json"
    record = json.loads(file.read_text())
    del record["augment"]["level"]
    file.write_text(json.dumps(record))
    check_same_run(place.folder(run), config)
    with pytest.raises(DataError, match=r"augment\.level 0\.0"):
        check_same_run(place.folder(run), replace(config, augment=replace(config.augment, level=0.7)))


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
