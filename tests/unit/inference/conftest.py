"""Bundles of a few weights, for what is done with bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bids_scseg.inference.bundle import ModelBundle, save_bundle
from bids_scseg.network.build import build_network
from bids_scseg.recipe.model import InferenceSpec, NetworkSpec, Recipe, SequenceRule

NAMES = ("A", "B", "C")


def small_recipe(names: tuple[str, ...] = NAMES, *, flips: bool = False, **network: Any) -> Recipe:
    """Sequences of these names, the second one the best anchor, and a network for patches of 8 x 8 x 8."""
    defaults: dict[str, Any] = {
        "channels": (3, 4, 5),
        "strides": ((1, 1, 1), (2, 2, 2), (1, 1, 2)),
        "skips": "mean",
    }
    return Recipe(
        name="small",
        version="1",
        frame="centerline",
        target="lesion",
        sequences=tuple(SequenceRule(name=name, suffixes=("T2w",), planes=("sag",)) for name in names),
        anchors=(*names[1:], names[0]),
        network=NetworkSpec(sequences=names, **{**defaults, **network}),
        inference=InferenceSpec(patch_vox=(8, 8, 8), flips=flips),
    )


def random_weights(recipe: Recipe) -> dict[str, Any]:
    torch.manual_seed(5)
    built = build_network(recipe.network, anchors=recipe.anchors)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return {name: tensor.numpy() for name, tensor in built.state_dict().items()}


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., ModelBundle]:
    def make(names: tuple[str, ...] = NAMES, *, flips: bool = False, **network: Any) -> ModelBundle:
        recipe = small_recipe(names, flips=flips, **network)
        return save_bundle(
            tmp_path / "small",
            random_weights(recipe),
            recipe=recipe,
            threshold=0.4,
            provenance={"seed": 5},
            card="# Small\n\nNot validated on patients.",
        )

    return make
