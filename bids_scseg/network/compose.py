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

BIAS_TOLERANCE = 1e-6  # by which a composed bias may differ between the offsets of an up-convolution


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
    weight : (C, out, i, j, k)
        Of the composed transposed convolution: ``up`` after the sum of the fusion's n parts.
    bias : (out, i, j, k)
        For each offset in the kernel: a bias of the fusion layer comes out differently at each of them.
    """
    kernel, inner = up.weight.detach(), fusion.weight.detach().flatten(1)
    count = inner.shape[1] // inner.shape[0]
    summed = torch.stack(inner.chunk(count, dim=1)).sum(0)  # (C, C)
    weight = torch.einsum("mc,moijk->coijk", summed, kernel)
    bias = torch.zeros(kernel.shape[1:]).to(kernel)
    if fusion.bias is not None:
        bias = bias + torch.einsum("m,moijk->oijk", fusion.bias.detach(), kernel)
    if up.bias is not None:
        bias = bias + up.bias.detach()[:, None, None, None]
    return weight, bias


def compose_replicated(network: SegmentationNet) -> SegmentationNet:
    """The baseline that a network equals when only its first anchor is there, replicated for all sequences.

    Parameters
    ----------
    network
        Several sequences, linear fusion without bias, an up-convolution right after it; it is not changed.

    Returns
    -------
    SegmentationNet
        Of the anchor alone, in the same mode, with weights of its own.

    Raises
    ------
    DataError
        If fusion is not linear, something stands between it and the up-convolution, or its bias is not 0:
        each offset of the up-convolution would need a bias of its own, which no such network has.
    """
    fusion, up = network.fusion, network.decoder.ups[-1]
    if not isinstance(fusion, nn.Conv3d) or not isinstance(up, nn.ConvTranspose3d):
        raise _refusal(f"fusion {network.spec.fusion} of family {network.spec.family}")
    if not isinstance(network.decoder.bottleneck, nn.Identity):
        raise _refusal(f"family {network.spec.family} has a module between fusion and decoder")
    weight, bias = compose_up(fusion, up)
    constant = bias.flatten(1).mean(1)
    if not torch.allclose(bias.flatten(1), constant[:, None], rtol=0, atol=BIAS_TOLERANCE):
        raise _refusal("the fusion layer has a bias")
    anchor = network.anchors[0]
    with torch.device("meta"):
        baseline = SegmentationNet(replace(network.spec, sequences=(anchor,)), (anchor,))
    last = f"decoder.ups.{len(network.decoder.ups) - 1}"
    state = {name: value for name, value in network.state_dict().items() if name in baseline.state_dict()}
    state = {**state, f"{last}.weight": weight, f"{last}.bias": constant}
    baseline.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    return baseline.train(network.training)


def _refusal(found: str) -> DataError:
    return DataError(
        found,
        expected="a linear fusion without bias, then an up-convolution",
        remedy="compose another network",
    )
