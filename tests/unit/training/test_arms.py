from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bids_scseg.errors import DataError
from bids_scseg.network.build import SegmentationNet, build_network
from bids_scseg.network.compose import compose_replicated
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.arms import (
    build_arm,
    distillation,
    hold_for_replication,
    judged_sequences,
    shipped_network,
    shown_sequences,
)
from bids_scseg.training.checkpoint import Progress, save_checkpoint
from bids_scseg.training.config import (
    ArmConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    ValidationConfig,
    config_from_mapping,
    configured_recipe,
    load_config,
)
from bids_scseg.training.fit import Trained, fit
from bids_scseg.training.parse import merge, read_mapping
from bids_scseg.training.sample import Sample

RECIPE = load_recipe("cord-lesion")
WALSH = Path(__file__).resolve().parents[3] / "configs" / "walsh2024"
NAMES = RECIPE.sequence_names
SMALL = {"channels": [4, 6, 8], "strides": [[1, 1, 1], [2, 2, 2], [1, 1, 2]], "deep_supervision": 2}


def config(kind: str = "plain", **changes: Any) -> TrainingConfig:
    base = TrainingConfig(
        name="tiny",
        recipe="cord-lesion",
        iterations=4,
        precision="32-true",
        tensorboard=False,
        threads=1,
        network=SMALL,
        arm=ArmConfig(kind=kind),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, ema=0.9),
        sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=2),
    )
    return replace(base, **changes)


def recipe_of(one: TrainingConfig) -> Recipe:
    return configured_recipe(one, RECIPE)


class Cubes:
    """Six sequences that show the same bright cube; every third example has T2Sag alone."""

    def __init__(self, names: tuple[str, ...] = NAMES, available: tuple[bool, ...] = ()) -> None:
        self.names = names
        self.available = available

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        shape = (len(self.names), 8, 8, 8)
        image = rng.standard_normal(shape).astype(np.float32) * 0.1 + 2 * label
        flags = self.available or tuple(index % 3 != 0 or name == "T2Sag" for name in self.names)
        available = np.array(flags)
        image[~available] = 0
        coverage = np.broadcast_to(available[:, None, None, None], shape).copy()
        return Sample(image=image, coverage=coverage, label=label, available=available)

    def summary(self) -> dict[str, object]:
        return {}


def run(one: TrainingConfig, out: Path, **changes: Any) -> Trained:
    source = Cubes(recipe_of(one).network.sequences, **changes)
    return fit(one, source, recipe=RECIPE, out=out)


def net(**changes: Any) -> SegmentationNet:
    spec = replace(recipe_of(config()).network, **changes)
    torch.manual_seed(0)
    return build_network(spec, anchors=spec.sequences[:1])


def batch(available: list[list[bool]]) -> dict[str, torch.Tensor]:
    flags = torch.tensor(available)
    image = torch.randn(*flags.shape, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return {
        "image": image,
        "available": flags,
        "coverage": torch.ones_like(image, dtype=torch.bool),
        "index": torch.arange(len(flags)),
    }


def test_distillation_by_hand() -> None:
    # two elements for each of three sequences; anchor (1, 2), others (2, 4) and (1, -1)
    features = torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, -1.0]]).view(1, 3, 2, 1, 1, 1)
    every = torch.tensor([[True, True, True]])
    # means over elements (1 + 2) / 2 = 1.5 and (0 + 3) / 2 = 1.5; over sequences 1.5
    assert distillation(features, every, order=[0]).item() == pytest.approx(1.5)
    some = torch.tensor([[True, True, False]])
    assert distillation(features, some, order=[0]).item() == pytest.approx(1.5)
    # the second as anchor: (1 + 2) / 2 and (1 + 5) / 2, in the mean 2.25
    assert distillation(features, every, order=[1, 0]).item() == pytest.approx(2.25)
    # the first of the order that is there
    assert distillation(features, torch.tensor([[True, False, True]]), order=[1, 0]).item() == 1.5


def test_distillation_is_zero_with_the_anchor_alone_or_without_any() -> None:
    features = torch.full((2, 3, 2, 1, 1, 1), 5.0)
    features[:, 1:] = float("nan")  # of missing sequences nothing is used
    alone = torch.tensor([[True, False, False]] * 2)
    assert distillation(features, alone, order=[0]).item() == 0.0
    assert distillation(features, torch.tensor([[False, True, True]] * 2), order=[0]).item() == 0.0


def test_distillation_is_a_mean_over_items_and_draws_on_both_sides() -> None:
    features = torch.zeros(2, 2, 1, 1, 1, 1)
    features[0, 1] = 4.0
    features.requires_grad_()
    flags = torch.tensor([[True, True], [True, False]])
    loss = distillation(features, flags, order=[0])
    assert loss.item() == pytest.approx(2.0)  # 4 and 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert features.grad.flatten().tolist() == pytest.approx([-0.5, 0.5, 0.0, 0.0])


def test_the_distillation_arm_adds_its_weighted_term_and_leaves_the_outputs() -> None:
    one = config("distillation", arm=ArmConfig(kind="distillation", weight=0.1))
    network, data = net(), batch([[True] * 6, [True] + [False] * 5])
    outputs, term = build_arm(one, recipe_of(one)).forward(network, data)
    encoded = network.encode(data["image"], data["available"])
    assert term is not None
    assert term.item() == pytest.approx(
        0.1 * distillation(encoded.features, data["available"], order=[0]).item()
    )
    assert torch.allclose(outputs[0], network(data["image"], data["available"])[0], atol=1e-6)


def test_latent_noise_is_for_training_only() -> None:
    one = config("latent", network={**SMALL, "sequences": ["T2Sag"]})
    network, data = net(sequences=("T2Sag",)), batch([[True], [True]])
    arm = build_arm(one, recipe_of(one))
    plain = network(data["image"], data["available"])
    noisy, term = arm.forward(network, data)
    assert term is None
    assert not torch.allclose(noisy[0], plain[0], atol=1e-3)
    again, _ = arm.forward(network, data)
    assert torch.equal(noisy[0], again[0])  # example numbers decide
    network.eval()
    still, _ = arm.forward(network, data)
    assert torch.equal(still[0], network(data["image"], data["available"])[0])


def test_a_frozen_encoder_has_the_baselines_weights_and_never_moves(tmp_path: Path) -> None:
    baseline = run(config(network={**SMALL, "sequences": ["T2Sag"]}), tmp_path / "baseline")
    one = config("frozen", arm=ArmConfig(kind="frozen", source=str(tmp_path / "baseline")))
    trained = run(one, tmp_path / "frozen")
    before = {k: v for k, v in baseline.network.state_dict().items() if k.startswith("encoders.T2Sag.")}
    after = trained.network.state_dict()
    assert len(before) > 8
    # bit by bit: neither steps nor weight decay nor the moving average touched them
    assert all(torch.equal(after[key], value) for key, value in before.items())
    fresh = net().state_dict()
    assert not torch.equal(
        after["encoders.STIR.stages.0.0.0.weight"], fresh["encoders.STIR.stages.0.0.0.weight"]
    )
    # going on from the checkpoint keeps them too
    again = run(replace(one, iterations=6), tmp_path / "frozen").network.state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())


def test_a_frozen_encoder_must_be_there_and_fit(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(net().parameters())
    other = net(sequences=("STIR",), channels=(4, 6, 10))
    save_checkpoint(tmp_path, other, average=None, optimizer=optimizer, progress=Progress())
    for name, message in (("T2Sag", "no encoder of T2Sag$"), ("STIR", "no encoder of STIR that fits")):
        one = config(arm=ArmConfig(kind="frozen", sequence=name, source=str(tmp_path)))
        with pytest.raises(DataError, match=message.replace("$", ";")):
            build_arm(one, recipe_of(one)).prepare(net())


def test_the_control_equals_the_baseline_with_a_composed_up_convolution() -> None:
    network = net()
    hold_for_replication(network, "T2Sag")
    assert network.fusion is not None
    data = batch([[True] + [False] * 5] * 2)
    folded = compose_replicated(network, "T2Sag")
    assert folded.fusion is None
    assert folded.spec.sequences == ("T2Sag",)
    for mode in (True, False):
        control = network.train(mode)(data["image"], data["available"])
        baseline = folded.train(mode)(data["image"][:, :1], data["available"][:, :1])
        assert len(control) == len(baseline) == (2 if mode else 1)
        assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(control, baseline, strict=True))
    # the first up-convolution of the baseline is the control's, composed with the sum of the fusion's parts
    total = sum(part.flatten(1) for part in network.fusion.weight.chunk(6, dim=1))
    up = network.decoder.ups[-1].weight
    composed = torch.einsum("oc,oxijk->cxijk", total, up)
    assert torch.allclose(folded.decoder.ups[-1].weight, composed, atol=1e-5)


def test_the_control_trains_one_encoder_and_ships_the_baseline(tmp_path: Path) -> None:
    one = config("replicated")
    assert shown_sequences(one, recipe_of(one)) == judged_sequences(one, recipe_of(one)) == ("T2Sag",)
    trained = run(one, tmp_path, available=(True,) + (False,) * 5)
    state = trained.network.state_dict()
    assert not state["fusion.bias"].any()
    shipped = shipped_network(trained.network, one, trained.recipe)
    assert shipped.spec.sequences == ("T2Sag",)
    assert not any("STIR" in key for key in shipped.state_dict())


def test_what_does_not_fold_is_refused() -> None:
    with pytest.raises(DataError, match="does not fold"):
        hold_for_replication(net(fusion="attention"), "T2Sag")


def test_sequences_that_training_never_shows_are_folded_away(tmp_path: Path) -> None:
    sampling = SamplingConfig(patch_vox=(8, 8, 8), sequences=("STIR", "T2Sag"))
    one = config(sampling=sampling, iterations=1)
    assert shown_sequences(one, recipe_of(one)) == ("T2Sag", "STIR")
    trained = run(one, tmp_path, available=(True, True) + (False,) * 4)
    shipped = shipped_network(trained.network, one, trained.recipe)
    assert shipped.spec.sequences == ("T2Sag", "STIR")
    data = batch([[True, True] + [False] * 4, [True] + [False] * 5])
    whole = trained.network(data["image"], data["available"])[0]
    part = shipped.eval()(data["image"][:, :2], data["available"][:, :2])[0]
    assert torch.allclose(whole, part, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"arm": ArmConfig(kind="distillation", sequence="PSIR")}, "PSIR"),
        (
            {"arm": ArmConfig(kind="distillation"), "network": {**SMALL, "sequences": ["STIR"]}},
            "one sequence",
        ),
        ({"sampling": SamplingConfig(sequences=("FLAIR",))}, "FLAIR"),
        ({"sampling": SamplingConfig(alone=("FLAIR",), alone_share=0.5)}, "sampling.alone"),
        ({"sampling": SamplingConfig(sequences=("T2Sag",))}, "network.sequences"),
        (
            {
                "sampling": SamplingConfig(sequences=("T2Sag", "STIR")),
                "validation": ValidationConfig(sequences=("T1Sag",)),
            },
            "T1Sag",
        ),
    ],
)
def test_arms_that_do_not_fit_are_refused(changes: dict[str, Any], word: str) -> None:
    one = config(**changes)
    with pytest.raises(DataError, match=word):
        build_arm(one, recipe_of(one))


def test_judged_with_the_anchor_alone() -> None:
    one = config(validation=ValidationConfig(sequences=("T2Sag",)))
    assert judged_sequences(one, recipe_of(one)) == ("T2Sag",)
    assert shown_sequences(one, recipe_of(one)) == NAMES


def test_a_network_of_some_sequences_keeps_to_them() -> None:
    one = config(network={**SMALL, "sequences": ["STIR", "T2Ax"]})
    assert recipe_of(one).network.sequences == ("STIR", "T2Ax")
    with pytest.raises(DataError, match="Did you mean 'T2Sag'"):
        recipe_of(config(network={**SMALL, "sequences": ["T2sag"]}))


@pytest.mark.parametrize("path", sorted(WALSH.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_arms_fit_and_differ_from_their_scale_in_little(path: Path) -> None:
    one = load_config(path)
    build_arm(one, recipe_of(one))
    assert judged_sequences(one, recipe_of(one))[0] == "T2Sag"
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    if "extends" in own:
        assert own["extends"] == "reduced.toml"
        assert set(own) <= {"extends", "name", "network", "arm", "validation"}
        # the same arm at the paper's scale
        big = config_from_mapping(
            merge(
                read_mapping(WALSH / "paper.toml"),
                {key: value for key, value in own.items() if key != "extends"},
            ),
            file=path,
        )
        assert big.iterations == 250_000


def test_all_arms_are_shipped() -> None:
    kinds = [load_config(path).arm.kind for path in sorted(WALSH.glob("*.toml"))]
    assert {"plain", "latent", "frozen", "distillation", "replicated"} == set(kinds)
