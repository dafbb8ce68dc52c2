"""A shifted-window transformer as the encoder of one sequence (Hatamizadeh et al. 2022, Liu et al. 2021)."""

from __future__ import annotations

import torch
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.nets.swin_unetr import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional

from bids_scseg.network.attention import bias_table, heads_for, relative_bias
from bids_scseg.network.blocks import residual_block
from bids_scseg.network.spec import EncoderContract, Size

WINDOW = 6  # published: 7; 6 divides the 24, 12 and 6 places of a 48-voxel window, so nothing is padded
HEAD_CHANNELS = 16  # at feature size 48: 3, 6, 12, 24 heads as published
MLP_RATIO = 4  # published
DEPTH = 2  # blocks of a stage, published


class SwinEncoder(nn.Module):
    """Patch embedding, stages of two transformer blocks and a merging each, residual blocks on the way out.

    Parameters
    ----------
    contract
        Channels and strides: the second stage's stride is that of the embedding, later ones are mergings.
    gives_skips
        Whether skip features are ever asked of it; without, it has no blocks for them.
    """

    def __init__(self, contract: EncoderContract, gives_skips: bool = True) -> None:
        super().__init__()
        channels, strides = contract.channels, contract.strides
        self.embed = nn.Conv3d(1, channels[1], kernel_size=strides[1], stride=strides[1])
        self.stages = nn.ModuleList(
            SwinStage(before, after, stride)
            for before, after, stride in zip(channels[1:-1], channels[2:], strides[2:], strict=True)
        )
        self.skips = nn.ModuleList(_skip_blocks(channels) if gives_skips else ())
        self.bottleneck = residual_block(channels[-1], channels[-1], (1, 1, 1))

    def forward(self, image: Tensor, keep_skips: bool = True) -> tuple[list[Tensor], Tensor]:
        """As :meth:`bids_scseg.network.encoder.Encoder.forward`."""
        skips = [self.skips[0](image)] if keep_skips else []
        features = self.embed(image)
        for level, stage in enumerate(self.stages, start=1):
            if keep_skips:
                skips.append(self.skips[level](_normalised(features)))
            features = stage(features)
        return skips, self.bottleneck(_normalised(features))


class SwinStage(nn.Module):
    """Two transformer blocks, the second with shifted windows, then a merging of neighbours."""

    def __init__(self, in_channels: int, out_channels: int, stride: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(in_channels, shifted=bool(number % 2)) for number in range(DEPTH)
        )
        self.merge = PatchMerging(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Take (B, C, i, j, k) features to the next resolution."""
        features = features.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            features = block(features)
        merged: Tensor = self.merge(features)
        return merged.permute(0, 4, 1, 2, 3)


class SwinBlock(nn.Module):
    """Attention within windows, then a multi-layer perceptron; both normalised before and added.

    Parameters
    ----------
    channels
        Of input and output.
    shifted
        Whether windows are shifted by half their size; never along an axis that one window spans.
    """

    def __init__(self, channels: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.heads = heads_for(channels, HEAD_CHANNELS)
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.offsets = bias_table(self.heads, WINDOW - 1)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = MLPBlock(hidden_size=channels, mlp_dim=MLP_RATIO * channels, dropout_mode="swin")

    def forward(self, features: Tensor) -> Tensor:
        """(B, i, j, k, C) to the same."""
        features = features + self._attend(self.norm_attention(features))
        result: Tensor = features + self.mlp(self.norm_mlp(features))
        return result

    def _attend(self, features: Tensor) -> Tensor:
        size = _size(features)
        window, shift = _layout(size, shifted=self.shifted)
        padding = [(-length) % step for length, step in zip(size, window, strict=True)]
        padded = functional.pad(features, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        turned = padded.roll([-step for step in shift], (1, 2, 3)).contiguous()
        apart = _apart(turned, size, window=window, shift=shift)
        tokens = window_partition(turned, window)  # type: ignore[no-untyped-call]
        mixed = self._mix(tokens, window, apart)
        whole = window_reverse(mixed, window, turned.shape[:4])  # type: ignore[no-untyped-call]
        back: Tensor = whole.roll(list(shift), (1, 2, 3))[:, : size[0], : size[1], : size[2]]
        return back

    def _mix(self, tokens: Tensor, window: Size, apart: Tensor | None) -> Tensor:
        """Attention within each window: (windows, n, C) to the same."""
        count, places, channels = tokens.shape
        parts = self.qkv(tokens).reshape(count, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + relative_bias(self.offsets, window)
        if apart is not None:
            by_item = logits.reshape(-1, len(apart), self.heads, places, places)
            logits = by_item.masked_fill(apart[:, None], float("-inf")).reshape(logits.shape)
        gathered = torch.softmax(logits, dim=-1).to(value.dtype) @ value
        mixed: Tensor = self.project(gathered.transpose(1, 2).reshape(count, places, channels))
        return mixed


class PatchMerging(nn.Module):
    """Neighbours concatenated, normalised and projected, for any stride.

    Its parameters are five-dimensional like those of the strided convolution that it resembles.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size) -> None:
        super().__init__()
        self.stride = stride
        self.scale = nn.Parameter(torch.ones(1, in_channels, *stride))
        self.shift = nn.Parameter(torch.zeros(1, in_channels, *stride))
        self.reduction = nn.Conv3d(in_channels, out_channels, kernel_size=stride, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, i, j, k, C) to (B, i / stride, ..., out_channels)."""
        batch, channels = len(features), features.shape[-1]
        pairs = zip(_size(features), self.stride, strict=True)
        split = [number for length, step in pairs for number in (length // step, step)]
        blocks = features.reshape(batch, *split, channels).permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)
        scale, shift = self.scale.flatten(), self.shift.flatten()
        normed = functional.layer_norm(blocks, scale.shape, scale, shift)
        return functional.linear(normed, self.reduction.weight.flatten(1))


def _skip_blocks(channels: tuple[int, ...]) -> list[nn.Module]:
    """What skips pass through, full resolution (the image itself) first; the deepest stays as it is."""
    blocks = [residual_block(1, channels[0], (1, 1, 1))]
    blocks += [residual_block(width, width, (1, 1, 1)) for width in channels[1:-2]]
    return blocks + [nn.Identity() for _ in channels[1:-1][-1:]]


def _normalised(features: Tensor) -> Tensor:
    """Features over their channels' mean and spread, without parameters, as SwinUNETR hands them out."""
    last = features.permute(0, 2, 3, 4, 1)
    return functional.layer_norm(last, last.shape[-1:]).permute(0, 4, 1, 2, 3)


def _size(features: Tensor) -> Size:
    return features.shape[1], features.shape[2], features.shape[3]


def _layout(size: Size, *, shifted: bool) -> tuple[Size, Size]:
    """Window and shift for a map of that size."""
    first, second, third = (min(WINDOW, length) for length in size)
    a, b, c = (WINDOW // 2 if shifted and length > WINDOW else 0 for length in size)
    return (first, second, third), (a, b, c)


def _apart(turned: Tensor, size: Size, *, window: Size, shift: Size) -> Tensor | None:
    """(windows, n, n) bool: which places of a window must not see each other; None if all may.

    Places that the shift brought round the edge, and padding, are no neighbours of the rest. (SwinUNETR does
    not mask padding.) ``turned`` is the padded and shifted map, ``size`` what it was before padding.
    """
    padded = _size(turned)
    if size == padded and not any(shift):
        return None
    # made from the map itself: a trace would keep the device that arange is told
    each = torch.ones_like(turned[0, ..., 0], dtype=torch.long)
    kind = torch.zeros_like(each)
    for axis, (length, whole, step) in enumerate(zip(size, padded, shift, strict=True)):
        place = each.cumsum(axis) - 1
        wrapped, padding = place >= whole - step, (place + step) % whole >= length
        kind = kind * 4 + wrapped + 2 * padding
    kinds = window_partition(kind[None, ..., None], window)  # type: ignore[no-untyped-call]
    kinds = kinds[..., 0]
    apart: Tensor = kinds[:, :, None] != kinds[:, None, :]
    return apart
