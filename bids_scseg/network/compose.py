"""The single-sequence network that a network equals when it is shown one sequence, replicated.

The control of the comparison of arms: whatever such a network gains over the baseline it owes to how it was
trained, for the functions that both can be are the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.network.build import SegmentationNet
from bids_scseg.network.fusion import fold_weights

BIAS_TOLERANCE = 1e-6  # by which a composed bias may differ between the offsets of an up-convolution


def layers_that_fold(network: SegmentationNet) -> tuple[nn.Conv3d, nn.ConvTranspose3d]:
    """The linear fusion of a network and the up-convolution right after it.

    Raises
    ------
    DataError
        If fusion is not linear, or something else than an up-convolution follows it.
    """
    fusion, up = network.fusion, network.decoder.ups[-1]
    if not isinstance(fusion, nn.Conv3d) or not isinstance(up, nn.ConvTranspose3d):
        raise _refusal(f"fusion {network.spec.fusion} of family {network.spec.family} does not fold")
    if not isinstance(network.decoder.bottleneck, nn.Identity):
        raise _refusal(
            f"fusion does not fold: family {network.spec.family} has a module between fusion and decoder"
        )
    return fusion, up


def compose_up(fusion: nn.Conv3d, up: nn.ConvTranspose3d) -> tuple[Tensor, Tensor]:
    """One up-convolution that does what fusion of replicated features and up-convolution do in a row.

    Parameters
    ----------
    fusion
        Pointwise convolution from n * C to C channels.
    up
        The transposed convolution after it, kernel = stride.

    Returns
    -------
    weight : (C, out, i, j, k) float64
        Of the composed transposed convolution: ``up`` after the sum of the fusion's n parts.
    bias : (out, i, j, k) float64
        For each offset in the kernel: a bias of the fusion layer comes out differently at each of them.
    """
    kernel, inner = up.weight.detach().double(), fusion.weight.detach().double()
    parts = inner.shape[1] // inner.shape[0]
    alone = [True] + [False] * (parts - 1)  # mean imputation of one sequence is its replication
    summed = fold_weights(inner, alone).flatten(1)  # (C, C)
    weight = torch.einsum("oc,o...->c...", summed, kernel)
    bias = torch.zeros(kernel.shape[1:]).to(kernel)
    if fusion.bias is not None:
        bias = bias + torch.einsum("m,moijk->oijk", fusion.bias.detach().double(), kernel)
    if up.bias is not None:
        bias = bias + up.bias.detach().double()[:, None, None, None]
    return weight, bias


def compose_replicated(network: SegmentationNet, name: str) -> SegmentationNet:
    """The baseline that a network equals when one sequence alone is there, replicated for all.

    Parameters
    ----------
    network
        Several sequences, linear fusion without bias, an up-convolution right after it; it is not changed.
    name
        The sequence; under ``skips: anchor`` one that can give the skips.

    Returns
    -------
    SegmentationNet
        Of that sequence alone, in the same mode, with weights of its own.

    Raises
    ------
    DataError
        If fusion is not linear, something stands between it and the up-convolution, or its bias is not 0:
        each offset of the up-convolution would need a bias of its own, which no such network has.
    """
    fusion, up = layers_that_fold(network)
    weight, bias = compose_up(fusion, up)
    constant = bias.flatten(1).mean(1)
    if not torch.allclose(bias.flatten(1), constant[:, None], rtol=0, atol=BIAS_TOLERANCE):
        raise _refusal("the fusion layer has a bias")
    with torch.device("meta"):
        baseline = SegmentationNet(replace(network.spec, sequences=(name,)), (name,))
    last = f"decoder.ups.{len(network.decoder.ups) - 1}"
    state = {key: value for key, value in network.state_dict().items() if key in baseline.state_dict()}
    state |= {f"{last}.weight": weight.to(up.weight), f"{last}.bias": constant.to(up.weight)}
    baseline.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return baseline.train(network.training)


def _refusal(found: str) -> DataError:
    return DataError(
        found,
        expected="a linear fusion without bias, then an up-convolution, as in family 'plain'",
        remedy="choose another network.family or network.fusion",
    )
