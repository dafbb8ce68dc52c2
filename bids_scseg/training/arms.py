"""The arms of Walsh et al. 2024 and a control: what each adds to the one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.network.build import SegmentationNet, fold_missing
from bids_scseg.network.compose import compose_replicated, layers_that_fold
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import NetworkSpec, Recipe
from bids_scseg.training.checkpoint import read_weights
from bids_scseg.training.config import ArmConfig, SamplingConfig, TrainingConfig, configured_recipe
from bids_scseg.training.latent import disturb
from bids_scseg.training.parse import check_choice, within

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], tuple[list[Tensor], Tensor | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What an arm adds.

    Attributes
    ----------
    forward
        From a network and a batch (``image``, ``available``, ``coverage``, ``index``) to the outputs, full
        resolution first, and a term that is added to the loss (None: no term).
    prepare
        Changes a new network before the first step: loads and freezes weights.
    """

    forward: Forward
    prepare: Callable[[nn.Module], None]


def build_arm(config: TrainingConfig, recipe: Recipe) -> Arm:
    """The arm that a configuration names, for the network of ``recipe``.

    Raises
    ------
    DataError
        If the arm does not fit the network.
    """
    arm, spec = config.arm, recipe.network
    _check(config, recipe)
    if arm.kind == "latent":
        return Arm(forward=_latent(arm, seed=config.seed), prepare=_nothing)
    if arm.kind == "frozen":
        name = arm_sequence(arm, recipe)
        return Arm(forward=_plain, prepare=lambda network: freeze_encoder(network, name, Path(arm.source)))
    if arm.kind == "distillation":
        anchors = (arm.sequence,) if arm.sequence else network_anchors(recipe)
        order = [spec.sequences.index(name) for name in anchors]
        return Arm(forward=_distilled(order, weight=arm.weight), prepare=_nothing)
    if arm.kind == "replicated":
        name = arm_sequence(arm, recipe)
        return Arm(forward=_plain, prepare=lambda network: hold_for_replication(network, name))
    return Arm(forward=_plain, prepare=_nothing)


def checked_recipe(config: TrainingConfig, *, file: object = None) -> Recipe:
    """The recipe that a run trains, when all names in its configuration have been looked up.

    Parameters
    ----------
    config
        Of the run.
    file
        Where it comes from, for messages.

    Raises
    ------
    MissingInputError
        If the recipe is a file that is not there.
    DataError
        If the configuration names a recipe, sequence or field that there is not, or its parts do not fit.
    """
    recipe = configured_recipe(config, load_recipe(config.recipe, where=within(file, "recipe")), file=file)
    _check(config, recipe, file=file)
    return recipe


def network_anchors(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's anchors among the network's sequences, best first; its first sequence if none is."""
    names = recipe.network.sequences
    return tuple(name for name in recipe.anchors if name in names) or names[:1]


def arm_sequence(arm: ArmConfig, recipe: Recipe) -> str:
    """The sequence that an arm singles out."""
    return arm.sequence or network_anchors(recipe)[0]


def shown_sequences(config: TrainingConfig, recipe: Recipe) -> tuple[str, ...]:
    """Names of the sequences that training shows to the network, in its channel order."""
    wanted = config.sampling.sequences
    if config.arm.kind == "replicated":
        wanted = (arm_sequence(config.arm, recipe),)
    return tuple(name for name in recipe.network.sequences if not wanted or name in wanted)


def shown_sampling(config: TrainingConfig, recipe: Recipe) -> SamplingConfig:
    """How patches are drawn, with the sequences of :func:`shown_sequences`."""
    return replace(config.sampling, sequences=shown_sequences(config, recipe))


def judged_sequences(config: TrainingConfig, recipe: Recipe) -> tuple[str, ...]:
    """Names of the sequences that held-out cases are judged with, in the network's channel order."""
    wanted = config.validation.sequences
    return tuple(name for name in shown_sequences(config, recipe) if not wanted or name in wanted)


def _check(config: TrainingConfig, recipe: Recipe, *, file: object = None) -> None:
    arm, spec = config.arm, recipe.network
    if arm.sequence:
        check_choice(arm.sequence, spec.sequences, where=within(file, "arm.sequence"))
    if arm.kind in ("distillation", "replicated", "frozen") and len(spec.sequences) < 2:
        raise DataError(
            f"arm.kind {arm.kind!r} for a network of one sequence",
            file=file,
            expected="two sequences or more",
        )
    shown = shown_sequences(config, recipe)
    for field, names, known in (
        ("sampling.sequences", config.sampling.sequences, spec.sequences),
        ("sampling.alone", config.sampling.alone, shown),
        ("validation.sequences", config.validation.sequences, shown),
    ):
        for name in names:
            check_choice(name, known, where=within(file, field))
    if len(shown) < len(spec.sequences) and arm.kind != "replicated":
        _check_foldable(spec, shown, file=file)


def _check_foldable(spec: NetworkSpec, shown: tuple[str, ...], *, file: object) -> None:
    """What is shipped has no encoder that was never trained, so the others must fold away."""
    if len(shown) == 1 or spec.impute != "mean":
        raise DataError(
            f"sampling.sequences {list(shown)} in a network of {len(spec.sequences)} sequences",
            file=file,
            expected="two sequences or more, and network.impute 'mean'",
            remedy="name them in network.sequences instead, or choose arm.kind 'replicated'",
        )


def _nothing(network: nn.Module) -> None:
    """Prepare nothing."""


def _plain(network: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
    outputs: list[Tensor] = network(batch["image"], batch["available"], batch["coverage"])
    return outputs, None


def _latent(arm: ArmConfig, *, seed: int) -> Forward:
    def forward(network: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
        net = _open(network)
        encoded = net.encode(batch["image"], batch["available"])
        fused = net.fuse(encoded, batch["coverage"])
        if net.training:
            fused = disturb(fused, index=batch["index"], seed=seed, config=arm)
        return net.decode(fused, encoded.skips), None

    return forward


def _distilled(order: list[int], *, weight: float) -> Forward:
    def forward(network: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
        net = _open(network)
        encoded = net.encode(batch["image"], batch["available"])
        term = distillation(encoded.features, encoded.available, order=order)
        fused = net.fuse(encoded, batch["coverage"])
        return net.decode(fused, encoded.skips), weight * term

    return forward


def _open(network: nn.Module) -> SegmentationNet:
    """The network, whose parts this arm calls itself."""
    if not isinstance(network, SegmentationNet):
        raise DataError(
            f"this arm works on a bottleneck, and a {type(network).__name__} shows none",
            expected="a network of encoders, fusion and decoder",
            remedy="choose arm.kind 'plain' or another network.family",
        )
    return network


def distillation(features: Tensor, available: Tensor, *, order: list[int]) -> Tensor:
    """L1 distance between the anchor's bottleneck features and those of each other available sequence.

    Parameters
    ----------
    features : (B, S, C, i, j, k)
        Bottleneck features; those of missing sequences are never used.
    available : (B, S) bool
        Which sequences are present.
    order
        Channels that can be the anchor, best first: each item takes its first available one.

    Returns
    -------
    () float32
        Mean over elements, then over an item's other sequences, then over items; an item with its anchor
        alone, or without any anchor, counts 0. Gradients flow into both sides.
    """
    anchor = torch.zeros_like(available)
    served = torch.zeros_like(available[:, 0])
    for channel in order:
        anchor[:, channel] = available[:, channel] & ~served
        served = served | available[:, channel]
    others = available & ~anchor & served[:, None]
    values = features.float()
    shape = (*anchor.shape, 1, 1, 1, 1)
    reference = torch.where(anchor.view(shape), values, torch.zeros_like(values)).sum(1, keepdim=True)
    gaps = torch.where(others.view(shape), (values - reference).abs(), torch.zeros_like(values))
    by_item = gaps.flatten(2).mean(2).sum(1) / others.sum(1).clamp_min(1)
    return by_item.mean()


def freeze_encoder(network: nn.Module, name: str, source: Path) -> None:
    """Give one encoder the weights it has in a checkpoint or bundle, and fix them.

    A fixed weight has no gradient and is no business of the optimizer, so neither a step nor weight decay
    moves it; its moving average is itself.

    Raises
    ------
    DataError
        If the source has no such encoder, or one of other sizes.
    """
    encoder = _open(network).encoders[name]
    prefix = f"encoders.{name}."
    weights = {k.removeprefix(prefix): v for k, v in read_weights(source).items() if k.startswith(prefix)}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"no encoder of {name} that fits" if weights else f"no encoder of {name}",
            file=source,
            expected="a training of the same network.channels with that sequence",
        ) from error
    encoder.requires_grad_(False)


def hold_for_replication(network: nn.Module, name: str) -> None:
    """Fix what the control has no use for: other encoders, and the fusion's bias at 0.

    With the others missing, mean imputation puts the one sequence's features in every place of the fusion.
    Without bias the fusion folds exactly into the up-convolution that follows it.

    Raises
    ------
    DataError
        If something else than that follows, or the fusion is not linear.
    """
    net = _open(network)
    fusion, _ = layers_that_fold(net)
    for other, encoder in net.encoders.items():
        encoder.requires_grad_(other == name)
    if fusion.bias is not None:
        nn.init.zeros_(fusion.bias)
        fusion.bias.requires_grad_(False)


def shipped_network(network: nn.Module, config: TrainingConfig, recipe: Recipe) -> nn.Module:
    """The same function without encoders that were never trained; the network itself where all were."""
    if not isinstance(network, SegmentationNet):
        return network
    shown = shown_sequences(config, recipe)
    if config.arm.kind == "replicated":
        return compose_replicated(network, shown[0])
    return network if len(shown) == len(network.spec.sequences) else fold_missing(network, shown)
