"""Stages that encoders and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bids_scseg.network.spec import Size

KERNEL = 3  # Walsh et al. 2024 follow nnU-Net's plain blocks
NORM_EPS = 1e-5  # nnU-Net
LEAKY_SLOPE = 0.01  # nnU-Net

StageBuilder = Callable[[int, int, Size], nn.Module]


def conv_norm_relu(in_channels: int, out_channels: int, stride: Size) -> nn.Sequential:
    """One 3x3x3 convolution with bias, affine instance normalisation and leaky ReLU."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, KERNEL, stride=stride, padding=KERNEL // 2, bias=True),
        instance_norm(out_channels),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


def instance_norm(channels: int) -> nn.InstanceNorm3d:
    """Affine instance normalisation: batches of two patches are too small for batch statistics."""
    return nn.InstanceNorm3d(channels, eps=NORM_EPS, affine=True)


def plain_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Two convolutions, each normalised and activated; the first one strided (the paper's stage)."""
    return nn.Sequential(
        conv_norm_relu(in_channels, out_channels, stride),
        conv_norm_relu(out_channels, out_channels, (1, 1, 1)),
    )


def residual_block(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """MONAI's residual block of two convolutions, with affine instance normalisation and leaky ReLU.

    Where size or channels change, a strided pointwise convolution with normalisation is the shortcut.
    """
    from monai.networks.blocks.dynunet_block import UnetResBlock

    block: nn.Module = UnetResBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=KERNEL,
        stride=stride,
        norm_name=("instance", {"affine": True, "eps": NORM_EPS}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": LEAKY_SLOPE}),
    )
    return block


def plain_up(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """A transposed convolution that undoes a stride: kernel = stride, with bias (the paper's)."""
    return nn.ConvTranspose3d(in_channels, out_channels, kernel_size=stride, stride=stride, bias=True)


def init_he(module: nn.Module) -> None:
    """He initialisation of convolutions, biases zero (nnU-Net; open in the paper)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
