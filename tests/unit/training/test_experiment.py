from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bids_scseg.errors import BusyError, DataError, MissingInputError, UsageError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training import experiment, journal
from bids_scseg.training.cases import load_case
from bids_scseg.training.config import read_mapping
from bids_scseg.training.experiment import (
    ExperimentConfig,
    Place,
    Run,
    load_experiment,
    open_experiment,
    plan_runs,
    run_all,
)
from bids_scseg.training.findings import write_findings

NAMES = load_recipe("cord-lesion").sequence_names
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SIZE = (16, 16, 32)
TOML = """
name = "tiny"
title = "Tiny & <quick>"
baseline = "baseline"
seeds = [0]
[split]
validation = 0.25
[availability]
keep = ["T2Sag"]
share = 0.5
[[settings]]
name = "T2Sag"
sequences = ["T2Sag"]
[[settings]]
name = "all"
[training]
recipe = "cord-lesion"
iterations = 4
checkpoint_every = 1
log_every = 1
precision = "32-true"
threads = 1
tensorboard = false
network = { channels = [2, 2, 2, 2, 2], skips = "anchor" }
optimizer = { name = "adamw", lr = 0.01 }
sampling = { patch_vox = [16, 16, 16], batch = 1 }
validation = { thresholds = [0.4, 0.6], min_volumes_mm3 = [0.0] }
[[arms]]
name = "baseline"
paper = { f1 = 0.5 }
training = { network = { sequences = ["T2Sag"] } }
[[arms]]
name = "frozen"
title = "Frozen <b>"
needs = "baseline"
training = { arm = { kind = "frozen", sequence = "T2Sag" } }
[[arms]]
name = "extra"
optional = true
"""


def write_cases(root: Path, count: int, *, first: int = 0) -> Path:
    for number in range(first, first + count):
        folder = root / f"sub-{number:02d}"
        folder.mkdir(parents=True)
        label = np.zeros(SIZE, np.uint8)
        if number % 4:
            label[6:9, 6:9, 10:20] = 1
        available = np.array([True, True, number % 2 == 0, False, False, False])
        coverage = np.broadcast_to(available[:, None, None, None], (6, *SIZE)).copy()
        image = (np.random.default_rng(number).standard_normal((6, *SIZE)) + 2 * label) * coverage
        for name, array in (("image", image.astype(np.float16)), ("coverage", coverage), ("label", label)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        record = {
            "case": folder.name, "subject": f"{number:02d}", "sequences": list(NAMES),
            "available": available.tolist(), "preparation": 1, "cord_method": "masks",
        }  # fmt: skip
        (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return load_experiment(path)


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


def test_sessions_keep_the_anchor_and_some_others(finished: Place, data: Path) -> None:
    kept = [load_case(path.parent, sequences=NAMES).available for path in finished.cases.rglob("case.json")]
    before = [load_case(path.parent, sequences=NAMES).available for path in data.rglob("case.json")]
    assert len(kept) == len(before) == 10
    assert all(one[0] for one in kept)
    assert 10 < sum(one.sum() for one in kept) < sum(one.sum() for one in before)


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
    interrupted.setattr(
        experiment, "judge_cases", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        run_all(place, plan_runs(config, only=("baseline:0",)))
    assert (place.folder(run) / "trained.json").exists()
    interrupted.undo()
    interrupted.setattr(experiment, "train", lambda *_, **__: pytest.fail("trained twice"))
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
    with experiment._lock(finished.folder(run), run):
        (ending,) = run_all(finished, [run])
    assert isinstance(ending.error, BusyError)


def test_a_folder_belongs_to_one_experiment(finished: Place, tmp_path: Path) -> None:
    longer = replace(finished.config, training={**finished.config.training, "iterations": 9})
    with pytest.raises(DataError, match="another training"):
        open_experiment(replace(finished, config=longer))
    faster = replace(finished.config, training={**finished.config.training, "threads": 2})
    open_experiment(replace(finished, config=faster))
    other = write_cases(tmp_path, 9)
    with pytest.raises(DataError, match="another data"):
        open_experiment(replace(finished, data=other))
    with pytest.raises(DataError, match="test cases are the training cases"):
        open_experiment(replace(finished, test=finished.data))
    with pytest.raises(DataError, match="among the prepared cases"):
        open_experiment(replace(finished, out=finished.data / "experiment"))
    # an arm that was trained otherwise is no longer this arm
    arms = [replace(arm, training={**arm.training, "loss": {"smooth": 1.0}}) for arm in finished.config.arms]
    (ending,) = run_all(
        replace(finished, config=replace(finished.config, arms=tuple(arms))), [Run(arm="baseline", seed=0)]
    )
    assert "another configuration of this arm" in ending.words


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


def test_runs_come_seed_by_seed_and_needed_ones_first(config: ExperimentConfig) -> None:
    twice = replace(config, seeds=(0, 1), arms=config.arms[::-1])
    assert [run.label for run in plan_runs(twice)] == ["baseline:0", "frozen:0", "baseline:1", "frozen:1"]
    assert [run.label for run in plan_runs(twice, arms=("extra",))][:2] == ["baseline:0", "extra:0"]
    assert plan_runs(twice, only=("extra:1",)) == (Run(arm="extra", seed=1),)
    for text in ("extra", "extra:7", "other:0", ":0"):
        with pytest.raises(UsageError):
            plan_runs(twice, only=(text,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "baseline"', 'baseline = "base"', "baseline 'base'"),
        ("seeds = [0]", "seeds = [0, 0]", "different whole numbers"),
        ("seeds = [0]", "seed = [0]", "Did you mean 'seeds'"),
        ('name = "frozen"', 'name = "../frozen"', "letters, digits"),
        ('needs = "baseline"', 'needs = "extra2"', "needs 'extra2'"),
        ("iterations = 4", "iteration = 4", "Did you mean 'iterations'"),
        ("iterations = 4", "iterations = 4\nseed = 1", "the experiment sets it"),
        ("iterations = 4", "iterations = 4\ndevices = 2", "--only ARM:SEED"),
        ("share = 0.5", "share = 1.5", "0 to 1"),
        ("paper = { f1 = 0.5 }", "paper = { auc = 0.5 }", "f1 and dice"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(TOML.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_experiment(path)


@pytest.mark.parametrize("name", ["walsh2024", "walsh2024-paper"])
def test_the_papers_comparison_has_its_arms(name: str) -> None:
    found = load_experiment(CONFIGS / f"{name}.toml")
    arms = [arm for arm in found.arms if not arm.optional]
    assert [arm.name for arm in arms] == [
        "baseline", "latent", "frozen", "distillation", "mean", "replicated",
    ]  # fmt: skip
    # specification: the paper's lesion-wise F1 and Dice
    assert [(arm.paper.get("f1"), arm.paper.get("dice")) for arm in arms] == [
        (0.564, 0.441), (0.586, 0.446), (0.591, 0.448), (0.575, 0.435), (0.603, 0.457), (None, None),
    ]  # fmt: skip
    assert len(found.seeds) == 3
    # each is what the training configuration of that arm says
    for arm in arms:
        file = read_mapping(CONFIGS / "walsh2024" / f"{arm.name}.toml")
        stated = {**file.get("arm", {"kind": "plain"})}
        stated.pop("source", None)
        assert arm.training.get("arm", {"kind": "plain"}) == stated
        own = arm.training.get("network", {}).get("sequences")
        assert own == file["network"].get("sequences")
