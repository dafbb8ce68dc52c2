from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.network.build import SegmentationNet, build_network, fold_missing, parameter_count
from bids_scseg.recipe.model import NetworkSpec

PAPER = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")
TINY = NetworkSpec(
    channels=(3, 4, 5), strides=((1, 1, 1), (2, 2, 2), (1, 1, 2)), sequences=("T2Sag", "STIR", "MP2RAGE")
)
SHAPE = (4, 4, 8)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(7)


def tiny(**changes: object) -> SegmentationNet:
    network = build_network(replace(TINY, **changes))  # type: ignore[arg-type]
    for parameter in network.parameters():  # biases are 0 and norms 1 at the start, which hides mistakes
        nn.init.normal_(parameter, std=0.5)
    return network.eval()


def images(batch: int = 1, sequences: int = 3) -> Tensor:
    return torch.randn(batch, sequences, *SHAPE)


def flags(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_paper_size_parameter_counts() -> None:
    with torch.device("meta"):
        network = build_network(NetworkSpec(sequences=PAPER))
    # encoder, by hand: sum over stages of 27*(in*out + out*out) + 2*out biases + 4*out norms
    channels = (1, 32, 64, 128, 256, 320)
    by_hand = sum(27 * (before * after + after * after) + 6 * after for before, after in pairwise(channels))
    assert parameter_count(network.encoders["T2Sag"]) == by_hand == 8_493_600
    assert parameter_count(network.decoder) == pytest.approx(7.6e6, rel=0.01)
    assert network.fusion is not None
    assert parameter_count(network.fusion) == 1920 * 320 + 320
    assert parameter_count(network) == pytest.approx(59e6, rel=0.01)


def test_baseline_has_no_fusion_layer() -> None:
    with torch.device("meta"):
        network = build_network(NetworkSpec())
    assert network.fusion is None
    assert parameter_count(network) == pytest.approx(8.5e6 + 7.6e6, rel=0.01)


def test_bottleneck_of_the_paper() -> None:
    with torch.device("meta"):
        network = build_network(NetworkSpec())
        skips, bottleneck = network.encoders["T2Sag"](torch.empty(1, 1, 48, 48, 320))
    assert bottleneck.shape == (1, 320, 6, 6, 20)
    assert [tuple(skip.shape[1:]) for skip in skips] == [
        (32, 48, 48, 320),
        (64, 24, 24, 160),
        (128, 12, 12, 80),
        (256, 6, 6, 40),
    ]


def test_state_dict_holds_every_weight_once() -> None:
    network = tiny()
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert sum(tensor.numel() for tensor in state.values()) == parameter_count(network)
    assert not any("encoder" in key for key in network.decoder.state_dict())


def test_training_gives_the_supervised_resolutions_and_evaluation_one() -> None:
    network = tiny()
    available = flags((1, 1, 1), (1, 0, 0))
    assert [tuple(logits.shape) for logits in network(images(2), available)] == [(2, 2, *SHAPE)]
    network.train()
    assert [tuple(logits.shape) for logits in network(images(2), available)] == [
        (2, 2, *SHAPE),
        (2, 2, 2, 2, 4),
    ]


@pytest.mark.parametrize("skips", ["anchor", "mean"])
@pytest.mark.parametrize("impute", ["mean", "voxel"])
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_of_absent_sequences_do_not_matter(skips: str, impute: str, value: float) -> None:
    network = tiny(skips=skips, impute=impute)
    available = flags((1, 0, 1), (1, 1, 0))
    coverage = torch.ones(2, 3, *SHAPE, dtype=torch.bool)
    clean = images(2)
    soiled = clean.clone()
    soiled[~available] = value
    with torch.no_grad():
        assert torch.equal(network(clean, available, coverage)[0], network(soiled, available, coverage)[0])


@pytest.mark.parametrize("skips", ["anchor", "mean"])
def test_batch_items_do_not_influence_each_other(skips: str) -> None:
    network = tiny(skips=skips)
    batch, available = images(3), flags((1, 1, 1), (1, 0, 0), (1, 0, 1))
    with torch.no_grad():
        together = network(batch, available)[0]
        alone = [network(batch[i : i + 1], available[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_encoder_of_a_missing_sequence_never_runs() -> None:
    network = tiny(skips="mean")
    seen: dict[str, int] = {}
    for name, encoder in network.encoders.items():
        encoder.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: len(args[0])}))
    with torch.no_grad():
        network(images(2), flags((1, 0, 0), (1, 0, 1)))
    assert seen == {"T2Sag": 2, "MP2RAGE": 1}  # STIR never; MP2RAGE on the one item that has it


def test_flags_follow_the_features_to_their_device() -> None:
    """Which encoders run is decided by values, so flags may be on CPU beside images that have none."""
    network = tiny(skips="mean").to("meta")
    encoded = network.encode(images().to("meta"), flags((1, 0, 1)))
    assert encoded.available.device == encoded.features.device == torch.device("meta")
    assert network.fuse(encoded).shape == (1, 5, 2, 2, 2)


def test_missing_features_are_the_mean_of_the_available_ones() -> None:
    network = tiny()
    batch = images()
    with torch.no_grad():
        first = network.encoders["T2Sag"](batch[:, :1])[1]
        third = network.encoders["MP2RAGE"](batch[:, 2:])[1]
        assert network.fusion is not None
        expected = network.fusion(torch.cat([first, (first + third) / 2, third], dim=1))
        found = network.fuse(network.encode(batch, flags((1, 0, 1))))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [1, 3])
def test_replicated_features_equal_the_baseline_composed_with_the_summed_weights(shared: int) -> None:
    """The fusion layer is linear: with one sequence, it and the first up-convolution are one layer."""
    network = tiny()
    baseline = build_network(replace(TINY, sequences=("T2Sag",))).eval()
    baseline.encoders["T2Sag"].load_state_dict(network.encoders["T2Sag"].state_dict())
    baseline.decoder.load_state_dict(network.decoder.state_dict())
    if shared == 3:  # the replication control: all encoders are the same one
        for name in ("STIR", "MP2RAGE"):
            network.encoders[name].load_state_dict(network.encoders["T2Sag"].state_dict())
    assert network.fusion is not None and network.fusion.bias is not None
    nn.init.zeros_(network.fusion.bias)  # upsampled, it would be one constant per offset, which no bias is
    summed = torch.stack(network.fusion.weight.detach().chunk(3, dim=1)).sum(0)[:, :, 0, 0, 0]
    first_up = baseline.decoder.ups[-1].weight  # (in, out, i, j, k)
    with torch.no_grad():
        first_up.copy_(torch.einsum("ci,coxyz->ioxyz", summed, first_up.clone()))
    batch = images()
    available = flags((1, *([int(shared == 3)] * 2)))
    replicated = batch[:, :1].expand(1, 3, *SHAPE)
    with torch.no_grad():
        found = network(replicated, available)[0]
        expected = baseline(batch[:, :1], flags((1,)))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_order_of_sequences_is_only_a_name_for_channels() -> None:
    network = tiny(skips="mean")
    order = (2, 0, 1)
    other = build_network(
        replace(TINY, sequences=tuple(TINY.sequences[i] for i in order), skips="mean")
    ).eval()
    state = network.state_dict()
    parts = state["fusion.weight"].chunk(3, dim=1)
    state["fusion.weight"] = torch.cat([parts[i] for i in order], dim=1)
    other.load_state_dict(state)
    batch, available = images(2), flags((1, 0, 1), (1, 1, 1))
    with torch.no_grad():
        found = other(batch[:, list(order)], available[:, list(order)])[0]
        torch.testing.assert_close(found, network(batch, available)[0], rtol=1e-5, atol=1e-5)


def test_mean_skips_are_the_mean_over_available_sequences() -> None:
    network = tiny(skips="mean")
    batch = images(2)
    available = flags((0, 1, 1), (1, 1, 1))
    with torch.no_grad():
        each = [network.encoders[name](batch[:, i : i + 1])[0] for i, name in enumerate(TINY.sequences)]
        found = network.encode(batch, available).skips
    for level, skip in enumerate(found):
        torch.testing.assert_close(skip[0], (each[1][level][0] + each[2][level][0]) / 2)
        torch.testing.assert_close(skip[1], sum(part[level][1] for part in each) / 3)


def test_mean_skips_take_any_subset() -> None:
    network = tiny(skips="mean")
    for size in (1, 2, 3):
        for present in combinations(range(3), size):
            row = tuple(int(i in present) for i in range(3))
            assert torch.isfinite(network(images(), flags(row))[0]).all()


def test_gradients_agree_with_running_sums_under_no_grad() -> None:
    network = tiny(skips="mean")
    batch, available = images(2), flags((1, 1, 1), (1, 1, 1))
    with torch.no_grad():
        without = network(batch, available)[0]
    torch.testing.assert_close(network(batch, available)[0], without)


def test_missing_sequence_gets_no_gradient_and_the_others_do() -> None:
    network = tiny(skips="mean").train()
    network(images(2), flags((1, 0, 1), (1, 0, 0)))[0].square().sum().backward()
    assert all(parameter.grad is None for parameter in network.encoders["STIR"].parameters())
    assert all(parameter.grad is not None for parameter in network.encoders["MP2RAGE"].parameters())


def test_missing_anchor_is_an_error() -> None:
    with pytest.raises(DataError, match=r"anchor sequence is missing.*T2Sag.*skips: mean"):
        tiny()(images(), flags((0, 1, 1)))


def test_each_item_takes_its_first_available_anchor() -> None:
    network = build_network(TINY, anchors=("STIR", "T2Sag")).eval()
    batch = images(2)
    with torch.no_grad():
        found = network.encode(batch, flags((1, 1, 0), (1, 0, 0))).skips
        stir = network.encoders["STIR"](batch[:, 1:2])[0]
        sagittal = network.encoders["T2Sag"](batch[:, :1])[0]
    torch.testing.assert_close(found[0][0], stir[0][0])
    torch.testing.assert_close(found[0][1], sagittal[0][1])


@pytest.mark.parametrize("skips", ["anchor", "mean"])
def test_folded_imputation_is_the_same_function(skips: str) -> None:
    network = tiny(skips=skips)
    batch = images(2)
    for present in ((0,), (0, 2), (0, 1, 2)):
        row = tuple(int(i in present) for i in range(3))
        folded = fold_missing(network, tuple(TINY.sequences[i] for i in reversed(present)))
        with torch.no_grad():
            full = network(batch, flags(row, row))[0]
            small = folded(batch[:, list(present)], torch.ones(2, len(present), dtype=torch.bool))[0]
        assert list(folded.encoders) == [TINY.sequences[i] for i in present]
        assert (full - small).abs().max() < 1e-5 * max(1.0, float(full.abs().max()))


@pytest.mark.parametrize(
    ("available", "changes"),
    [((), {}), (("FLAIR",), {}), (("STIR",), {}), (("T2Sag",), {"impute": "voxel"})],
    ids=["nothing", "unknown", "no anchor", "by coverage"],
)
def test_folding_refuses(available: tuple[str, ...], changes: dict[str, str]) -> None:
    with pytest.raises(DataError):
        fold_missing(tiny(**changes), available)


@pytest.mark.parametrize(
    ("shape", "available"),
    [
        ((1, 2, *SHAPE), flags((1, 1))),
        ((1, 3, 4, 4, 6), flags((1, 1, 1))),
        ((1, 3, *SHAPE), flags((0, 0, 0))),
        ((1, 3, *SHAPE), torch.ones(1, 3)),
    ],
    ids=["channels", "size", "nothing available", "not bool"],
)
def test_wrong_input_is_refused(shape: tuple[int, ...], available: Tensor) -> None:
    with pytest.raises(DataError):
        tiny()(torch.zeros(shape), available)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "unet"},
        {"channels": (3, 4)},
        {"strides": ((2, 2, 2), (2, 2, 2), (1, 1, 2))},
        {"sequences": ("T2Sag", "T2Sag")},
        {"deep_supervision": 3},
        {"classes": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_impossible_networks_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DataError):
        build_network(replace(TINY, **changes))  # type: ignore[arg-type]


def test_an_unknown_family_says_which_exist() -> None:
    with pytest.raises(DataError, match=r"family 'unet'.*'mednext'.*'plain'"):
        build_network(replace(TINY, family="unet"))


def test_unknown_anchor_is_refused() -> None:
    with pytest.raises(DataError, match="FLAIR"):
        build_network(TINY, anchors=("FLAIR",))
