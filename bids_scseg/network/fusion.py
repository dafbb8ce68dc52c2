"""Imputation of missing sequences at the bottleneck, and the linear fusion that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def impute(features: Tensor, weights: Tensor) -> Tensor:
    """Fill what sequences lack by the weighted mean of those that have it (Walsh et al. 2024, eq. 1).

    Parameters
    ----------
    features : (B, S, C, i, j, k)
        Bottleneck features of each sequence; values of weight 0 are never used, not even NaN.
    weights : (B, S) or (B, S, 1, i, j, k)
        1 where a sequence is present, 0 where it is missing; fractions for partial coverage.

    Returns
    -------
    (B, S, C, i, j, k)
        ``w_s f_s + (1 - w_s) m`` with ``m = sum(w f) / sum(w)``. Where no sequence has weight,
        the result is 0 (callers make sure that some sequence does).
    """
    if weights.ndim == 2:
        weights = weights[:, :, None, None, None, None]
    weights = weights.to(features.dtype)
    known = torch.where(weights > 0, features, torch.zeros_like(features)) * weights
    total = weights.sum(1, keepdim=True)
    mean = known.sum(1, keepdim=True) / torch.where(total > 0, total, torch.ones_like(total))
    return known + (1 - weights) * mean


def coverage_weights(coverage: Tensor, available: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Share of each bottleneck voxel that a sequence covers.

    Parameters
    ----------
    coverage : (B, S, i, j, k) bool
        Where each sequence has data, at full resolution.
    available : (B, S) bool
        Which sequences are present.
    shape
        Size of the bottleneck.

    Returns
    -------
    (B, S, 1, i, j, k) float32
        Pooled coverage of available sequences, 0 for missing ones. Where no available sequence covers
        a voxel, all available ones weigh 1 there: the mean per subject.
    """
    present = available[:, :, None, None, None].float()
    pooled = functional.adaptive_avg_pool3d(coverage.float(), shape) * present
    nobody = pooled.sum(1, keepdim=True) == 0
    return torch.where(nobody, present, pooled).unsqueeze(2)


def fused_linear(channels: int, sequences: int) -> nn.Conv3d:
    """Pointwise convolution with bias from concatenated features to one set, without norm or activation.

    Only a pointwise linear layer folds into what follows, which the paper's argument on replicated
    features requires.
    """
    return nn.Conv3d(channels * sequences, channels, kernel_size=1, bias=True)


def fold_weights(weight: Tensor, available: list[bool]) -> Tensor:
    """Fold mean imputation into fusion weights.

    Parameters
    ----------
    weight : (C, S * C, 1, 1, 1)
        Fusion weights over all sequences.
    available
        Which sequences are present, at least one.

    Returns
    -------
    (C, A * C, 1, 1, 1)
        Weights over the available sequences alone: ``W_k + sum(missing W) / A``.
    """
    parts = weight.chunk(len(available), dim=1)
    present = [part for part, is_there in zip(parts, available, strict=True) if is_there]
    missing = [part for part, is_there in zip(parts, available, strict=True) if not is_there]
    if not missing:
        return weight
    share = torch.stack(missing).sum(0) / len(present)
    return torch.cat([part + share for part in present], dim=1)
