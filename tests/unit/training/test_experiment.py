from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny_experiment import TOML, tiny_experiment

from bids_scseg.errors import DataError, UsageError
from bids_scseg.network.cost import forward_flops
from bids_scseg.network.families import FAMILIES
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.config import configured_recipe
from bids_scseg.training.experiment import (
    AvailabilityPlan,
    Run,
    arm_config,
    deciding,
    load_experiment,
    plan_runs,
)
from bids_scseg.training.findings import own_facts, shared_facts
from bids_scseg.training.parse import packaged_configs, read_mapping

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_arms_can_share_a_packaged_configuration(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text('name = "ours"\nbase = "own"\nbaseline = "a"\n[[arms]]\nname = "a"\n', encoding="utf-8")
    own = read_mapping(packaged_configs()["own"])
    assert load_experiment(file).training == {k: v for k, v in own.items() if k not in ("name", "seed")}


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
        (
            "optional = true",
            "training = { iterations = 9 }",
            "arm extra: 9 iterations; expected 4, as the baseline has.*unequal = true",
        ),
        (
            "optional = true",
            'training = { network = { family = "resnec" } }',
            r"arm extra: \[network\]: family: value 'resnec'.*Did you mean 'resenc'",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(TOML.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_experiment(path)


def test_unequal_arms_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    arm = "training = { iterations = 9, optimizer = { lr = 0.5 }, network = { channels = [2, 2, 2, 2, 4] } }"
    text = TOML.replace('baseline = "baseline"', 'baseline = "baseline"\nunequal = true', 1)
    path.write_text(text.replace("optional = true", arm, 1), encoding="utf-8")
    config = load_experiment(path)
    shared = shared_facts(config, config.arms)
    assert shared["iterations"] == "4 (baseline, frozen); 9 (extra)"
    assert shared["channels"] == "2, 2, 2, 2, 2 (baseline, frozen); 2, 2, 2, 2, 4 (extra)"
    assert shared["patches"] == "16 × 16 × 16 voxels of 0.5 mm, 1 per iteration"
    own = own_facts(config, config.arms)
    assert own == {
        "arm baseline alone": "network.sequences: T2Sag",
        "arm frozen alone": "arm.kind: frozen; arm.sequence: T2Sag; "
        "arm.source: the run of baseline with the same seed",
        "arm extra alone": "iterations: 9; network.channels: 2, 2, 2, 2, 4; optimizer.lr: 0.5",
    }
    equal = tiny_experiment(tmp_path)
    assert shared_facts(equal, equal.arms)["iterations of every run"] == "4"
    assert own_facts(equal, equal.arms)["arm extra alone"] == "nothing of its own"


@pytest.mark.parametrize("name", ["walsh2024", "walsh2024-paper"])
def test_the_papers_arms_are_for_any_data(name: str) -> None:
    found = load_experiment(CONFIGS / f"{name}.toml")
    assert found.availability == AvailabilityPlan()
    assert "synthetic" not in found.title
    assert "computed" not in " ".join(found.notes)


def test_the_synthetic_comparison_is_the_one_that_was_begun() -> None:
    found = load_experiment(CONFIGS / "walsh2024-synthetic.toml")
    begun = json.loads((CONFIGS.parent / "docs/experiments/walsh2024/experiment.json").read_text())
    stated = json.loads(json.dumps(asdict(found)))
    for key in ("name", "availability", "profile", "settings", "overlap"):
        assert stated[key] == begun[key]
    assert json.loads(json.dumps(deciding(found.training))) == begun["training"]
    assert {**stated["split"], "test": 0.0} == begun["split"]
    assert found.arms == load_experiment(CONFIGS / "walsh2024.toml").arms
    assert "Every image of this experiment is computed" in found.notes[0]


def test_all_families_are_compared_under_one_budget() -> None:
    config = load_experiment(CONFIGS / "families.toml")
    assert config.availability == AvailabilityPlan()
    assert not config.unequal
    networks = {}
    for arm in config.arms:
        found = arm_config(config, arm, where=arm.name)
        recipe = configured_recipe(found, load_recipe(found.recipe))
        networks[arm.name] = recipe.network
        assert forward_flops(recipe.network, recipe.inference.patch_vox) > 0  # it builds and runs
    assert {spec.family for spec in networks.values()} == set(FAMILIES)
    assert networks["attention"] == replace(networks["plain"], fusion="attention")
    own = own_facts(config, config.arms)
    assert own.pop("arm plain alone") == "nothing of its own"
    assert own.pop("arm attention alone") == "network.fusion: attention"
    assert own == {f"arm {name} alone": f"network.family: {name}" for name in set(FAMILIES) - {"plain"}}


def test_the_synthetic_comparison_differs_at_the_papers_scale_by_that_alone() -> None:
    large = load_experiment(CONFIGS / "walsh2024-synthetic-paper.toml")
    small = load_experiment(CONFIGS / "walsh2024-synthetic.toml")
    assert (large.availability, large.split, large.arms) == (small.availability, small.split, small.arms)
    assert large.training == load_experiment(CONFIGS / "walsh2024-paper.toml").training
    assert large.notes[0] == small.notes[0]


@pytest.mark.parametrize(
    "name", ["walsh2024", "walsh2024-synthetic", "walsh2024-paper", "walsh2024-synthetic-paper"]
)
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
