"""Attention modules: over channels, over places, at skips and at the bottleneck.

Inference on CPU turns the axes of the image, and of every five-dimensional weight with them. So whatever
depends on an axis is a five-dimensional parameter here, and nothing is a buffer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from bids_scseg.network.blocks import instance_norm
from bids_scseg.network.spec import Size

REDUCTION = 16  # Hu et al. 2018, Woo et al. 2018
LEAST_HIDDEN = 4  # ours: a sixteenth of eight channels would leave nothing
SPATIAL_KERNEL = 7  # Woo et al. 2018
TABLE_SD = 0.02  # of relative position biases at the start, Liu et al. 2021


def heads_for(channels: int, least: int) -> int:
    """Number of attention heads: as many as divide the channels and leave each head at least ``least``."""
    most = max(1, channels // least)
    return max(heads for heads in range(1, most + 1) if channels % heads == 0)


def reduction_for(channels: int) -> int:
    """Reduction ratio of channel attention: 16, less where fewer than four hidden units would remain."""
    return max(1, min(REDUCTION, channels // LEAST_HIDDEN))


def squeeze_excitation(channels: int) -> nn.Module:
    """MONAI's squeeze-and-excitation: channels weighted by a small network on their means."""
    from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer

    layer: nn.Module = ChannelSELayer(spatial_dims=3, in_channels=channels, r=reduction_for(channels))
    return layer


def attention_gate(channels: int) -> nn.Module:
    """MONAI's attention gate of a skip connection, instance normalisation where it has batch's.

    Called with (decoder features, skip features), both of these channels and of one size.
    """
    from monai.networks.nets.attentionunet import AttentionBlock

    inner = max(1, channels // 2)  # as MONAI's AttentionUnet
    gate: nn.Module = AttentionBlock(spatial_dims=3, f_int=inner, f_g=channels, f_l=channels)
    for name, width in (("W_g", inner), ("W_x", inner), ("psi", 1)):
        cast("nn.Sequential", gate.get_submodule(name))[1] = instance_norm(width)
    return gate


class ConvolutionalAttention(nn.Module):
    """Channel attention, then spatial attention (CBAM, Woo et al. 2018, in three dimensions).

    Parameters
    ----------
    channels
        Of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // reduction_for(channels)
        self.what = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.where = nn.Conv3d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Weight (B, C, i, j, k) features by channel, then by place."""
        flat = features.flatten(2)
        what = torch.sigmoid(self.what(flat.mean(2)) + self.what(flat.amax(2)))
        features = features * what[:, :, None, None, None]
        summary = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)
        # float32 under autocast too: oneDNN's bfloat16 gradient of so large a kernel (torch 2.13) is NaN
        # at times, or never comes back
        with _without_autocast(summary.device):
            where = torch.sigmoid(self.where(summary.float()))
        weighted: Tensor = features * where.to(features.dtype)
        return weighted


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context of full precision; a device such as meta knows no autocast, nor that it could be off."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class NonLocal(nn.Module):
    """Self-attention over all places, added to its input (embedded Gaussian, Wang et al. 2018).

    The last scale starts at 0, so that a fresh block is the identity. Products are divided by the root of
    their length, which the publication does not do.

    Parameters
    ----------
    channels
        Of input and output; half as many inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.query = nn.Conv3d(channels, inner, kernel_size=1)
        self.key = nn.Conv3d(channels, inner, kernel_size=1)
        self.value = nn.Conv3d(channels, inner, kernel_size=1)
        self.project = nn.Conv3d(inner, channels, kernel_size=1)
        self.norm = instance_norm(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Relate all places of (B, C, i, j, k) features to each other."""
        query, key, value = (part(features).flatten(2) for part in (self.query, self.key, self.value))
        logits = query.transpose(1, 2) @ key * query.shape[1] ** -0.5
        gathered = value @ torch.softmax(logits, dim=-1).to(value.dtype).transpose(1, 2)
        projected = self.project(gathered.reshape(*gathered.shape[:2], *features.shape[2:]))
        result: Tensor = features + self.norm(projected)
        return result


def bias_table(heads: int, reach: int) -> nn.Parameter:
    """Learned biases of attention by relative position.

    Returns
    -------
    (heads, 1, 2 * reach + 1, 2 * reach + 1, 2 * reach + 1) parameter, normal with a spread of 0.02.
    """
    table = nn.Parameter(torch.empty(heads, 1, *([2 * reach + 1] * 3)))
    nn.init.trunc_normal_(table, std=TABLE_SD)
    return table


def relative_bias(table: Tensor, size: Size) -> Tensor:
    """Biases between all pairs of places of a box.

    Parameters
    ----------
    table : (heads, 1, 2 * reach + 1, ...)
        As :func:`bias_table`; places further apart than ``reach`` along an axis take its outermost entry.
    size
        Of the box.

    Returns
    -------
    (heads, n, n) where n is the number of places in the box; first index: the one that looks.
    """
    steps = []
    for axis, length in enumerate(size):
        reach = table.shape[2 + axis] // 2
        place = torch.arange(length, device=table.device)  # in a trace always on CPU, where an index may be
        steps.append((place[:, None] - place).clamp(-reach, reach) + reach)
    first, second, third = steps
    row = first[:, None, :, None] * table.shape[3] + second[None, :, None, :]
    index = row[:, :, None, :, :, None] * table.shape[4] + third[None, None, :, None, None, :]
    places = size[0] * size[1] * size[2]
    return table.flatten(1)[:, index.flatten()].reshape(-1, places, places)
