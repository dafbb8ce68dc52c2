from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_scseg.errors import DataError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import NetworkSpec, Recipe
from bids_scseg.training.checkpoint import load_weights
from bids_scseg.training.config import OptimizerConfig, SamplingConfig, TrainingConfig
from bids_scseg.training.fit import fit, polynomial
from bids_scseg.training.sample import Sample

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Blobs:
    """Bright cubes on noise: learnable in a few steps."""

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.standard_normal((1, 8, 8, 8)).astype(np.float32) * 0.1
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        image[0, label == 1] += 2
        return Sample(
            image=image, coverage=np.ones(image.shape, bool), label=label, available=np.array([True])
        )

    def summary(self) -> dict[str, object]:
        return {"source": "blobs"}


def tiny_recipe() -> Recipe:
    spec = NetworkSpec(
        channels=(4, 8), strides=((1, 1, 1), (2, 2, 2)), sequences=("image",), deep_supervision=1
    )
    return replace(load_recipe("cord-finder"), network=spec)


def tiny_config(**changes: object) -> TrainingConfig:
    config = TrainingConfig(
        name="tiny",
        recipe="cord-finder",
        iterations=6,
        checkpoint_every=3,
        precision="32-true",
        optimizer=OptimizerConfig(name="adamw", lr=0.01, ema=0.5),
        sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=2),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def test_it_learns_and_leaves_its_traces(tmp_path: Path) -> None:
    config = tiny_config(iterations=50)
    trained = fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path)
    example = Blobs().sample(999)
    with torch.no_grad():
        logits = trained.network(torch.from_numpy(example.image)[None], torch.tensor([[True]]))[0]
    found = logits.argmax(1)[0].numpy() == 1
    truth = example.label == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    with (tmp_path / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["iteration"] for row in rows] == ["25", "50"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "data.json", "log.csv", "checkpoint.json", "checkpoint.safetensors",
    }  # fmt: skip


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = polynomial(tiny_config().optimizer, 6)
    fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=whole, schedule=schedule)
    for iterations in (3, 6):
        fit(tiny_config(iterations=iterations), Blobs(), recipe=tiny_recipe(), out=parts, schedule=schedule)
    one, two = weights(whole), weights(parts)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(tiny_config(iterations=1, checkpoint_every=1), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    wider = replace(tiny_recipe(), network=replace(tiny_recipe().network, channels=(6, 8)))
    with pytest.raises(DataError, match="another network"):
        fit(tiny_config(), Blobs(), recipe=wider, out=tmp_path)


def test_training_can_start_from_the_average_of_another(tmp_path: Path) -> None:
    trained = fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path / "one")
    start = tiny_config(initial=str(tmp_path / "one"), iterations=1, optimizer=OptimizerConfig(lr=0.0))
    again = fit(start, Blobs(), recipe=tiny_recipe(), out=tmp_path / "two")
    for name, value in trained.network.state_dict().items():
        assert torch.allclose(value, again.network.state_dict()[name])
    with pytest.raises(DataError, match="no weights"):
        load_weights(tmp_path, trained.network)


def test_looks_at_held_out_cases_are_logged(tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, validation=replace(config.validation, every=3))
    seen = []

    def look(network: torch.nn.Module, iteration: int) -> dict[str, float]:
        seen.append((iteration, network.training))
        return {"dice": 0.5}

    fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path, look=look)
    assert seen == [(3, False), (6, False)]
    assert (tmp_path / "validation.csv").read_text().splitlines()[1] == "3,0.5"


def test_polynomial_schedule() -> None:
    factor = polynomial(OptimizerConfig(power=0.9, warmup=10), 100)
    assert factor(0) == pytest.approx(0.1)
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(100) == 0.0
