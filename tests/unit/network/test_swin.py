from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bids_scseg.network.swin import WINDOW, PatchMerging, SwinBlock


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(2)


def touched(block: SwinBlock, size: tuple[int, int, int], place: int) -> Tensor:
    """(k,) bool: which places along the last axis change with the feature at one of them."""
    features = torch.randn(1, *size, 16)
    changed = features.clone()
    changed[:, :, :, place, 0] += 1  # one channel: the same for all would be normalised away
    with torch.no_grad():
        return (block(changed) - block(features)).abs().amax((0, 1, 2, 4)) > 1e-6


def test_windows_do_not_see_each_other() -> None:
    seen = touched(SwinBlock(16, shifted=False), (2, 2, 2 * WINDOW), 2)
    assert seen.tolist() == [True] * WINDOW + [False] * WINDOW


def test_shifted_windows_cross_the_border_and_do_not_wrap_round() -> None:
    block, half = SwinBlock(16, shifted=True), WINDOW // 2
    middle = touched(block, (2, 2, 2 * WINDOW), WINDOW)
    assert middle.tolist() == [False] * half + [True] * WINDOW + [False] * half
    end = touched(block, (2, 2, 2 * WINDOW), 0)
    assert end.tolist() == [True] * half + [False] * (2 * WINDOW - half)


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_is_not_seen(shifted: bool) -> None:
    """Eight places are padded to twelve: what shares a window with padding attends to itself alone."""
    block = SwinBlock(16, shifted=shifted)
    features = torch.randn(1, 1, 1, WINDOW + 1, 16)
    if shifted:  # windows after the shift: places 3-6 with two that padding fills, 0-2 apart
        first, second = features[..., : WINDOW // 2, :], features[..., WINDOW // 2 :, :]
    else:
        first, second = features[..., :WINDOW, :], features[..., WINDOW:, :]
    with torch.no_grad():
        found = block(features)
        apart = [SwinBlock.forward(_unshifted(block), part) for part in (first, second)]
    torch.testing.assert_close(found, torch.cat(apart, dim=-2), rtol=1e-4, atol=1e-5)


def _unshifted(block: SwinBlock) -> SwinBlock:
    other = SwinBlock(16, shifted=False)
    other.load_state_dict(block.state_dict())
    return other


def test_merging_concatenates_normalises_and_projects() -> None:
    merge = PatchMerging(2, 3, (1, 2, 2))
    features = torch.randn(1, 2, 4, 4, 2)
    torch.nn.init.normal_(merge.scale)
    # the block at (1, 0, 1): neighbours along the last two axes, channels first in the order of the kernel
    block = features[0, 1, 0:2, 2:4].permute(2, 0, 1).flatten()
    normed = (block - block.mean()) / (block.var(correction=0) + 1e-5).sqrt() * merge.scale.flatten()
    expected = merge.reduction.weight.flatten(1) @ normed
    found = merge(features)
    assert found.shape == (1, 2, 2, 2, 3)
    torch.testing.assert_close(found[0, 1, 0, 1], expected, rtol=1e-4, atol=1e-5)
