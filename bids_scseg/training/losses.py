"""Losses on network outputs, with voxels that do not count and deep supervision."""

from __future__ import annotations

import torch
from monai.losses.dice import DiceLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor, nn
from torch.nn import functional

from bids_scseg.training.config import LossConfig
from bids_scseg.training.sample import IGNORE


class SegmentationLoss(nn.Module):
    """Cross-entropy plus a foreground overlap term, both without ignored voxels.

    Parameters
    ----------
    config
        Which overlap term, and the weights.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.overlap = _overlap(config)
        self.exponent = config.gamma if config.name == "focal-tversky" else 1.0

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of one output.

        Parameters
        ----------
        logits : (B, classes, i, j, k)
            Network output; computed in float32 whatever the precision of training.
        label : (B, i, j, k) int64
            Class of each voxel; 255 does not count.

        Returns
        -------
        () float32
            0 where every voxel is ignored.
        """
        logits = logits.float()
        counts = label != IGNORE
        mask = counts[:, None].float()
        classes = torch.where(counts, label, 0)
        every = functional.one_hot(classes, logits.shape[1]).movedim(-1, 1).float() * mask
        logs = functional.log_softmax(logits, 1)
        # by hand: PyTorch's own cross-entropy has no deterministic form on GPUs
        weight = mask * torch.where(classes > 0, self.config.ce_foreground, 1.0)[:, None]
        entropy = -(logs * every * weight).sum() / weight.sum().clamp_min(1)
        # clamped: rounding can make an overlap loss slightly negative, whose power is not a number
        overlap: Tensor = self.overlap(logs.exp()[:, 1:] * mask, every[:, 1:]).clamp_min(1e-7)
        something = counts.any().float()
        return (
            self.config.ce_weight * entropy + self.config.overlap_weight * overlap**self.exponent * something
        )


class DeepSupervision(nn.Module):
    """Weighted sum of a loss over outputs of decreasing resolution.

    Labels are brought to an output's resolution by nearest-neighbour sampling.
    """

    def __init__(self, loss: nn.Module, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.loss = loss
        self.weights = weights

    def forward(self, outputs: list[Tensor], label: Tensor) -> Tensor:
        """Loss of all outputs; ``label`` is (B, i, j, k) int64 at the first output's resolution."""
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for logits, weight in zip(outputs, self.weights, strict=False):
            size = logits.shape[2:]
            resized = functional.interpolate(label[:, None].float(), size=size, mode="nearest")[:, 0].long()
            total = total + weight * self.loss(logits, resized)
        return total


def build_loss(config: LossConfig) -> DeepSupervision:
    """The loss that a configuration names."""
    return DeepSupervision(SegmentationLoss(config), config.output_weights)


def _overlap(config: LossConfig) -> nn.Module:
    # inputs are foreground probabilities already; overlap is pooled over the batch, because a patch
    # without any lesion would otherwise weigh as much as one with many
    if config.name == "dice-ce":
        dice: nn.Module = DiceLoss(smooth_nr=config.smooth, smooth_dr=max(config.smooth, 1e-7), batch=True)
        return dice
    tversky: nn.Module = TverskyLoss(
        alpha=config.alpha,
        beta=config.beta,
        smooth_nr=config.smooth,
        smooth_dr=max(config.smooth, 1e-7),
        batch=True,
    )
    return tversky
