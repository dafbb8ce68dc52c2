"""Missing sequences at the bottleneck: imputed before a linear fusion, or masked in an attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_scseg.network.attention import TABLE_SD, bias_table, heads_for, relative_bias

HEAD_CHANNELS = 64  # of fusing attention, Vaswani et al. 2017
REACH = 4  # positions that attention tells apart each way: 16 mm in plane, 32 mm along S-I (ours)


def impute(features: Tensor, weights: Tensor) -> Tensor:
    """Fill what sequences lack by the weighted mean of those that have it (Walsh et al. 2024, eq. 1).

    Parameters
    ----------
    features : (B, S, C, i, j, k)
        Bottleneck features of each sequence; values of weight 0 are never used, not even NaN.
    weights : (B, S) or (B, S, 1, i, j, k)
        1 where a sequence is present, 0 where it is missing; fractions for partial coverage. On the
        features' device.

    Returns
    -------
    (B, S, C, i, j, k)
        ``w_s f_s + (1 - w_s) m`` with ``m = sum(w f) / sum(w)``. Where no sequence has weight,
        the result is 0 (callers make sure that some sequence does).
    """
    weights = _spatial(weights, features.dtype)
    known = _known(features, weights) * weights
    return known + (1 - weights) * _mean(known, weights)


def _spatial(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights as (B, S, 1, i, j, k) of that type, on the device they are on."""
    spatial = weights[:, :, None, None, None, None] if weights.ndim == 2 else weights
    return spatial.to(dtype)  # not .to(features): a trace would keep the device it was made on


def _known(features: Tensor, weights: Tensor) -> Tensor:
    """Features, 0 where they have no weight, whatever stood there."""
    return torch.where(weights > 0, features, torch.zeros_like(features))


def _mean(weighted: Tensor, weights: Tensor) -> Tensor:
    """(B, 1, ...): sum over sequences of weighted features by the sum of weights."""
    total = weights.sum(1, keepdim=True)
    return weighted.sum(1, keepdim=True) / torch.where(total > 0, total, torch.ones_like(total))


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


class AttentionFusion(nn.Module):
    """Cross-attention at the bottleneck: the mean over sequences asks, every place of every sequence answers.

    The answer is added to the mean. A weight enters as so many copies of a place (its logarithm is added to
    the logits), so what has weight 0 is not there at all, and nothing is imputed.

    Parameters
    ----------
    channels
        Features of each sequence, and of the result.
    sequences
        Number of sequences; each has a learned mark on its keys and values.
    """

    def __init__(self, channels: int, sequences: int) -> None:
        super().__init__()
        self.heads = heads_for(channels, HEAD_CHANNELS)
        self.marks = nn.Parameter(torch.randn(sequences, channels) * TABLE_SD)
        self.norm_query = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        self.offsets = bias_table(self.heads, REACH)

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """Fuse.

        Parameters
        ----------
        features : (B, S, C, i, j, k)
            Bottleneck features of each sequence; values of weight 0 are never used, not even NaN.
        weights : (B, S) or (B, S, 1, i, j, k)
            As :func:`impute`; some weight above 0 for each item.

        Returns
        -------
        (B, C, i, j, k)
        """
        weights = _spatial(weights, features.dtype)
        known = _known(features, weights)
        mean = _mean(known * weights, weights)[:, 0]
        answer = self._attend(mean, known, weights.expand(-1, -1, 1, *features.shape[3:]))
        return mean + answer.transpose(1, 2).reshape(mean.shape)

    def _attend(self, mean: Tensor, known: Tensor, weights: Tensor) -> Tensor:
        """(B, n, C): what each of n places gathers from the S * n places of all sequences."""
        batch, sequences, channels, *size = known.shape
        query = self._by_head(self.query(self.norm_query(mean.flatten(2).transpose(1, 2))))
        context = self.norm_context(known.flatten(3).transpose(2, 3)) + self.marks[:, None]
        key, value = map(self._by_head, self.key_value(context.flatten(1, 2)).chunk(2, dim=-1))
        bias = relative_bias(self.offsets, (size[0], size[1], size[2]))
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + bias.repeat(1, 1, sequences)
        logits = logits + weights.reshape(batch, 1, 1, -1).log()
        gathered = torch.softmax(logits, dim=-1).to(value.dtype) @ value
        answer: Tensor = self.project(gathered.transpose(1, 2).reshape(batch, -1, channels))
        return answer

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(B, n, C) to (B, heads, n, C / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def among(self, available: list[bool]) -> AttentionFusion:
        """The same function where only some sequences are ever there; weights are copied."""
        fewer = AttentionFusion(len(self.norm_query.weight), sum(available)).to(self.marks)
        state = self.state_dict()
        fewer.load_state_dict({**state, "marks": state["marks"][available]})
        return fewer
