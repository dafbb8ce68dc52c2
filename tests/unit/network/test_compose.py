from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.network.build import SegmentationNet, build_network
from bids_scseg.network.compose import compose_replicated, compose_up
from bids_scseg.recipe.model import NetworkSpec

SIX = NetworkSpec(
    channels=(3, 4, 5),
    strides=((1, 1, 1), (2, 2, 2), (1, 1, 2)),
    sequences=("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE"),
)
SHAPE = (4, 8, 8)


def six(**changes: object) -> SegmentationNet:
    torch.manual_seed(4)
    network = build_network(replace(SIX, **changes))  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(network.fusion, nn.Conv3d) and network.fusion.bias is not None:
        nn.init.zeros_(network.fusion.bias)  # as a fresh network has it
    return network.eval()


@pytest.mark.parametrize("family", ["plain", "resenc", "attgate", "se", "cbam", "swinunetr"])
@pytest.mark.parametrize("training", [False, True])
def test_one_sequence_six_times_is_the_composed_baseline(family: str, training: bool) -> None:
    """T2Sag replicated: the fusion layer takes its features six times, as imputation has it."""
    network = six(family=family).train(training)
    baseline = compose_replicated(network, "T2Sag")
    assert baseline.spec.sequences == ("T2Sag",) and baseline.fusion is None
    images = torch.randn(2, 6, *SHAPE)
    alone = torch.tensor([[True] + [False] * 5] * 2)
    with torch.no_grad():
        found = network(images, alone)
        expected = baseline(images[:, :1], torch.ones(2, 1, dtype=torch.bool))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_six_equal_encoders_are_the_composed_baseline() -> None:
    network = six()
    for encoder in network.encoders.values():
        encoder.load_state_dict(network.encoders["T2Sag"].state_dict())
    image = torch.randn(1, 1, *SHAPE)
    with torch.no_grad():
        found = network(image.expand(1, 6, *SHAPE), torch.ones(1, 6, dtype=torch.bool))[0]
        expected = compose_replicated(network, "T2Sag")(image, torch.ones(1, 1, dtype=torch.bool))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_summed_weights_by_hand() -> None:
    fusion = nn.Conv3d(2, 1, kernel_size=1)  # one channel, two sequences: weights 2 and 3, bias 0.5
    up = nn.ConvTranspose3d(1, 1, kernel_size=(1, 1, 2), stride=(1, 1, 2))  # kernel 10, 20, bias 1
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1, 1))
        fusion.bias.fill_(0.5)
        up.weight.copy_(torch.tensor([10.0, 20.0]).reshape(1, 1, 1, 1, 2))
        up.bias.fill_(1.0)
    weight, bias = compose_up(fusion, up)
    assert weight.flatten().tolist() == [50.0, 100.0]  # (2 + 3) * 10, (2 + 3) * 20
    assert bias.flatten().tolist() == [6.0, 11.0]  # 0.5 * 10 + 1, 0.5 * 20 + 1
    features = torch.randn(1, 1, 2, 2, 3)
    weight, bias = weight.float(), bias.float()
    composed = nn.functional.conv_transpose3d(features, weight, stride=(1, 1, 2))
    composed = composed + bias.repeat(1, 2, 2, 3)
    torch.testing.assert_close(up(fusion(features.expand(1, 2, 2, 2, 3))), composed)


def test_weights_are_its_own() -> None:
    network = six()
    baseline = compose_replicated(network, "T2Sag")
    before = baseline.state_dict()["encoders.T2Sag.stages.0.0.0.weight"].clone()
    nn.init.zeros_(network.encoders["T2Sag"].stages[0][0][0].weight)
    assert torch.equal(baseline.state_dict()["encoders.T2Sag.stages.0.0.0.weight"], before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "attention"}, "fusion attention"),
        ({"family": "nonlocal"}, "between fusion and decoder"),
        ({"family": "mednext"}, "family mednext"),
        ({"sequences": ("T2Sag",)}, "fusion"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_composed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compose_replicated(six(**changes), "T2Sag")


def test_a_biased_fusion_is_refused() -> None:
    network = six()
    assert isinstance(network.fusion, nn.Conv3d)
    nn.init.ones_(network.fusion.bias)
    with pytest.raises(DataError, match="bias"):
        compose_replicated(network, "T2Sag")
