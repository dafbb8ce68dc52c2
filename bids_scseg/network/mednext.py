"""Stages of MedNeXt (Roy et al. 2023) for any stride, from MONAI's block."""

from __future__ import annotations

from monai.networks.blocks.mednext_block import MedNeXtBlock
from torch import Tensor, nn

from bids_scseg.network.spec import Size

KERNEL = 3  # MedNeXt-S
EXPANSION = 2  # MedNeXt-S
BLOCKS = 2  # of a stage, MedNeXt-S


class Resampling(nn.Module):
    """A block that changes size and channels, with a strided pointwise convolution as its shortcut.

    Parameters
    ----------
    block, shortcut
        Give features of one shape, which are added.
    """

    def __init__(self, block: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """Resample (B, C, i, j, k) features."""
        resampled: Tensor = self.block(features) + self.shortcut(features)
        return resampled


class SummedStage(nn.Module):
    """A decoder stage that adds skip features to upsampled ones, where others concatenate them.

    Parameters
    ----------
    channels
        Of upsampled features and of skips.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = blocks(channels)

    def forward(self, joined: Tensor) -> Tensor:
        """Take (B, 2 C, i, j, k), upsampled features first, to (B, C, i, j, k)."""
        up, skip = joined.chunk(2, dim=1)
        result: Tensor = self.blocks(up + skip)
        return result


def blocks(channels: int) -> nn.Sequential:
    """Two blocks that keep size and channels."""
    return nn.Sequential(*(_block(channels, channels, residual=True) for _ in range(BLOCKS)))


def encoder_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Downsampling, or a pointwise convolution where nothing is downsampled (the stem), then two blocks."""
    if stride == (1, 1, 1):
        return nn.Sequential(nn.Conv3d(in_channels, out_channels, kernel_size=1), blocks(out_channels))
    down = _block(in_channels, out_channels, residual=False)
    # MONAI's downsampling block halves every axis, the contract does not
    down.conv1 = nn.Conv3d(
        in_channels, in_channels, KERNEL, stride=stride, padding=KERNEL // 2, groups=in_channels
    )
    shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride)
    return nn.Sequential(Resampling(down, shortcut), blocks(out_channels))


def up(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """Upsampling by a block whose depthwise convolution is a transposed one."""
    extra = (stride[0] - 1, stride[1] - 1, stride[2] - 1)
    block = _block(in_channels, out_channels, residual=False)
    block.conv1 = nn.ConvTranspose3d(
        in_channels,
        in_channels,
        KERNEL,
        stride=stride,
        padding=KERNEL // 2,
        output_padding=extra,
        groups=in_channels,
    )
    shortcut = nn.ConvTranspose3d(
        in_channels, out_channels, kernel_size=1, stride=stride, output_padding=extra
    )
    return Resampling(block, shortcut)


def decoder_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    """The sum of both halves of the input, then two blocks."""
    return SummedStage(out_channels)


def _block(in_channels: int, out_channels: int, *, residual: bool) -> nn.Module:
    """Depthwise convolution, normalisation by channel and item (one group each), expansion, compression."""
    block: nn.Module = MedNeXtBlock(
        in_channels=in_channels,
        out_channels=out_channels,
        expansion_ratio=EXPANSION,
        kernel_size=KERNEL,
        use_residual_connection=residual,
        norm_type="group",
    )
    return block
