from __future__ import annotations

import math

import pytest
import torch

from bids_scseg.training.config import LossConfig
from bids_scseg.training.losses import DeepSupervision, SegmentationLoss, build_loss


def logits_of(foreground: list[float]) -> torch.Tensor:
    """(1, 2, n, 1, 1) logits whose softmax gives these foreground probabilities."""
    prob = torch.tensor(foreground)
    return torch.stack([(1 - prob).log(), prob.log()])[None, :, :, None, None]


def label_of(values: list[int]) -> torch.Tensor:
    return torch.tensor(values)[None, :, None, None]


def test_golden_value() -> None:
    # p = 0.8 on the one lesion voxel, 0.4 on the one background voxel:
    # CE = -(ln 0.8 + ln 0.6) / 2 = 0.36698; Dice = 2*0.8 / (0.8 + 0.4 + 1) = 0.72727
    loss = SegmentationLoss(LossConfig(smooth=1e-5))(logits_of([0.8, 0.4]), label_of([1, 0]))
    assert float(loss) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2 + 1 - 1.6 / 2.2, abs=1e-4)


def test_foreground_weighs_more_in_the_cross_entropy() -> None:
    # weights 3 and 1: -(3 ln 0.8 + ln 0.6) / 4
    config = LossConfig(ce_foreground=3.0, overlap_weight=0.0)
    value = float(SegmentationLoss(config)(logits_of([0.8, 0.4]), label_of([1, 0])))
    assert value == pytest.approx(-(3 * math.log(0.8) + math.log(0.6)) / 4, abs=1e-5)


def test_ignored_voxels_change_nothing() -> None:
    rule = SegmentationLoss(LossConfig())
    alone = rule(logits_of([0.8, 0.4]), label_of([1, 0]))
    for odd in (0.01, 0.99):
        assert float(rule(logits_of([0.8, 0.4, odd]), label_of([1, 0, 255]))) == pytest.approx(float(alone))


def test_all_ignored_gives_zero_and_a_gradient() -> None:
    logits = logits_of([0.8, 0.4]).requires_grad_()
    loss = SegmentationLoss(LossConfig())(logits, label_of([255, 255]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_tversky_golden_value() -> None:
    # TP 0.8, FP 0.4, FN 0.2: 0.8 / (0.8 + 0.3*0.4 + 0.7*0.2) = 0.754717; focal: (1 - that) ** 0.75
    config = LossConfig(name="tversky", ce_weight=0.0, smooth=0.0)
    value = float(SegmentationLoss(config)(logits_of([0.8, 0.4]), label_of([1, 0])))
    assert value == pytest.approx(1 - 0.8 / 1.06, abs=1e-5)
    focal = LossConfig(name="focal-tversky", ce_weight=0.0, smooth=0.0)
    assert float(SegmentationLoss(focal)(logits_of([0.8, 0.4]), label_of([1, 0]))) == pytest.approx(
        value**0.75, abs=1e-5
    )


def test_deep_supervision_weighs_outputs_and_halves_the_label() -> None:
    class Mean(torch.nn.Module):
        def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            assert logits.shape[2:] == label.shape[1:]
            return logits.mean()

    outputs = [torch.full((1, 2, 4, 4, 4), 3.0), torch.full((1, 2, 2, 2, 2), 6.0)]
    label = torch.randint(0, 2, (1, 4, 4, 4))
    assert float(DeepSupervision(Mean(), (2 / 3, 1 / 3))(outputs, label)) == pytest.approx(4.0)


def test_a_right_answer_costs_less_than_a_wrong_one() -> None:
    rule = build_loss(LossConfig())
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    label[0, 1, 1, 1] = 1
    right = torch.nn.functional.one_hot(label, 2).movedim(-1, 1).float() * 10
    assert float(rule([right], label)) < 0.01 < float(rule([-right], label))
