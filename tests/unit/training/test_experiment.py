from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_experiment import TOML, tiny_experiment

from bids_scseg.errors import DataError, UsageError
from bids_scseg.training.experiment import Run, load_experiment, plan_runs
from bids_scseg.training.parse import read_mapping

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_runs_come_seed_by_seed_and_needed_ones_first(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path)
    twice = replace(config, seeds=(0, 1), arms=config.arms[::-1])
    assert [run.label for run in plan_runs(twice)] == ["baseline:0", "frozen:0", "baseline:1", "frozen:1"]
    assert [run.label for run in plan_runs(twice, arms=("extra",))][:2] == ["baseline:0", "extra:0"]
    assert plan_runs(twice, only=("extra:1",)) == (Run(arm="extra", seed=1),)
    for text in ("extra", "extra:7", "other:0", ":0"):
        with pytest.raises(UsageError):
            plan_runs(twice, only=(text,))
    with pytest.raises(UsageError, match="Did you mean 'frozen'"):
        plan_runs(twice, arms=("frosen",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "baseline"', 'baseline = "base"', "baseline: value 'base'.*Did you mean 'baseline'"),
        ("seeds = [0]", "seeds = [0, 0]", "different whole numbers"),
        ("seeds = [0]", "seed = [0]", "Did you mean 'seeds'"),
        ('name = "frozen"', 'name = "../frozen"', "letters, digits"),
        ('needs = "baseline"', 'needs = "extra2"', "needs: value 'extra2'.*Did you mean 'extra'"),
        ('needs = "baseline"', 'needs = "frozen"', "frozen needs 'frozen'.*an arm that needs no other"),
        ("iterations = 4", "iteration = 4", "Did you mean 'iterations'"),
        ("iterations = 4", "iterations = 4\nseed = 1", "the experiment sets it"),
        ("iterations = 4", "iterations = 4\ndevices = 2", "--only ARM:SEED"),
        ("share = 0.5", "share = 1.5", "0 to 1"),
        ('keep = ["T2Sag"]', 'keep = ["T2sag"]', "keep: value 'T2sag'.*Did you mean 'T2Sag'"),
        (
            'sequences = ["T2Sag"]',
            'sequences = ["T2sag"]',
            "settings, T2Sag: sequences.*Did you mean 'T2Sag'",
        ),
        ("validation = 0.25", "validation = 25", "split.validation 25"),
        ('recipe = "cord-lesion"', 'recipe = "cord-lesions"', "there is no recipe"),
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
