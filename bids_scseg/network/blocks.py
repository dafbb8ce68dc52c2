"""Stages that encoders and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.network.spec import Size

KERNEL = 3  # Walsh et al. 2024 follow nnU-Net's plain blocks
NORM_EPS = 1e-5  # nnU-Net
LEAKY_SLOPE = 0.01  # nnU-Net

StageBuilder = Callable[[int, int, Size], nn.Module]


def conv_norm_relu(in_channels: int, out_channels: int, stride: Size) -> nn.Sequential:
    """One 3x3x3 convolution with bias, affine instance normalisation and leaky ReLU."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, KERNEL, stride=stride, padding=KERNEL // 2, bias=True),
        nn.InstanceNorm3d(out_channels, eps=NORM_EPS, affine=True),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


def plain_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Two convolutions, each normalised and activated; the first one strided (the paper's stage)."""
    return nn.Sequential(
        conv_norm_relu(in_channels, out_channels, stride),
        conv_norm_relu(out_channels, out_channels, (1, 1, 1)),
    )


STAGES: dict[str, StageBuilder] = {"plain": plain_stage}


def stage_builder(family: str) -> StageBuilder:
    """The stage builder of a block family.

    Raises
    ------
    DataError
        If there is no such family.
    """
    if family not in STAGES:
        raise DataError(
            f"network family {family!r} does not exist here",
            expected=f"one of {sorted(STAGES)}",
            remedy="choose one of these in the recipe's network.family",
        )
    return STAGES[family]


def init_he(module: nn.Module) -> None:
    """He initialisation of convolutions, biases zero (nnU-Net; open in the paper)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
