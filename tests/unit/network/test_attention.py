from __future__ import annotations

import pytest
import torch

from bids_scseg.network.attention import (
    ConvolutionalAttention,
    NonLocal,
    attention_gate,
    bias_table,
    heads_for,
    reduction_for,
    relative_bias,
    squeeze_excitation,
)


@pytest.mark.parametrize(
    ("channels", "least", "heads"),
    [
        (48, 16, 3),
        (96, 16, 6),
        (192, 16, 12),
        (384, 16, 24),
        (320, 64, 5),
        (80, 64, 1),
        (8, 16, 1),
        (7, 3, 1),
    ],
)
def test_heads_divide_the_channels(channels: int, least: int, heads: int) -> None:
    assert heads_for(channels, least) == heads


@pytest.mark.parametrize(("channels", "ratio"), [(1, 1), (8, 2), (32, 8), (64, 16), (320, 16)])
def test_reduction_leaves_four_hidden_units(channels: int, ratio: int) -> None:
    assert reduction_for(channels) == ratio


def test_relative_bias_depends_on_the_difference_of_places() -> None:
    torch.manual_seed(0)
    table, size = bias_table(2, reach=1), (2, 3, 2)
    found = relative_bias(table, size)
    places = [(i, j, k) for i in range(2) for j in range(3) for k in range(2)]
    assert found.shape == (2, 12, 12)
    for row, one in enumerate(places):
        for column, other in enumerate(places):
            # the middle of the table is no difference; two steps apart count as one
            i, j, k = (max(-1, min(1, a - b)) + 1 for a, b in zip(one, other, strict=True))
            assert torch.equal(found[:, row, column], table[:, 0, i, j, k])


def test_squeeze_excitation_weights_channels() -> None:
    features = torch.rand(2, 8, 2, 3, 4)
    share = squeeze_excitation(8)(features) / features
    torch.testing.assert_close(share, share[:, :, :1, :1, :1].expand_as(share))
    assert share.min() > 0 and share.max() < 1


def test_convolutional_attention_weights_channels_and_places() -> None:
    torch.manual_seed(0)
    features = torch.rand(1, 8, 3, 4, 5)
    share = (ConvolutionalAttention(8)(features) / features)[0].flatten(1)  # (C, places)
    assert share.min() > 0 and share.max() < 1
    # a product of one weight for each channel and one for each place
    torch.testing.assert_close(share, share[:, :1] * share[:1] / share[:1, :1])


def test_a_fresh_non_local_block_is_the_identity() -> None:
    features = torch.randn(2, 6, 2, 3, 4)
    assert torch.equal(NonLocal(6)(features), features)


def test_a_non_local_block_relates_places_far_apart() -> None:
    torch.manual_seed(0)
    block = NonLocal(4)
    torch.nn.init.ones_(block.norm.weight)
    features = torch.randn(1, 4, 3, 3, 9)
    changed = features.clone()
    changed[..., 0, 0, 0] += 3
    difference = (block(changed) - block(features)).detach().abs().amax(1)[0]
    assert difference[2, 2, 8] > 1e-5


def test_gates_weight_places_and_have_no_running_statistics() -> None:
    torch.manual_seed(0)
    gate = attention_gate(6)
    skip, up = torch.rand(2, 6, 2, 3, 4) + 0.1, torch.rand(2, 6, 2, 3, 4)
    share = gate(up, skip) / skip
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    assert not list(gate.buffers())
    assert not torch.equal(gate(up, skip), gate(up + torch.rand_like(up), skip))
