from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_scseg.inference.bundle import load_bundle, save_bundle
from bids_scseg.inference.predict import load_network
from bids_scseg.network.attention import ConvolutionalAttention
from bids_scseg.network.build import SegmentationNet, build_network, fold_missing, parameter_count
from bids_scseg.network.families import FAMILIES
from bids_scseg.recipe.load import load_recipe, network_from_json, network_to_json
from bids_scseg.recipe.model import Family, NetworkSpec

TINY = NetworkSpec(
    channels=(4, 6, 8),
    strides=((1, 1, 1), (2, 2, 2), (1, 1, 2)),
    sequences=("T2Sag", "STIR", "MP2RAGE"),
    skips="mean",
)
SHAPE = (4, 8, 8)
VARIANTS = [*((name, "linear") for name in FAMILIES), ("plain", "attention"), ("swinunetr", "attention")]
each_variant = pytest.mark.parametrize(("family", "fusion"), VARIANTS, ids=lambda value: value)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def trained(family: str, fusion: str) -> SegmentationNet:
    """A network of which no part is the identity any more: the non-local block starts as one."""
    torch.manual_seed(3)
    network = build_network(replace(TINY, family=family, fusion=fusion))  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 and "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def network_of(family: str, fusion: str = "linear") -> SegmentationNet:
    return copy.deepcopy(trained(family, fusion))


def images(batch: int = 1, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(5))


def flags(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_the_recipe_knows_these_families() -> None:
    assert set(get_args(Family)) == set(FAMILIES)


@each_variant
def test_shapes_and_gradients(family: str, fusion: str) -> None:
    network = network_of(family, fusion).train()
    outputs = network(images(2), flags((1, 1, 1), (1, 0, 0)))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 2, *SHAPE), (2, 2, 2, 4, 4)]
    sum(functional.cross_entropy(logits, logits.new_zeros(2, *logits.shape[2:], dtype=torch.long))
        for logits in outputs).backward()  # fmt: skip
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # a bias before a normalisation has no effect; every matrix and kernel has
        assert parameter.ndim == 1 or parameter.grad.abs().max() > 0, name


@each_variant
def test_any_subset_and_values_of_absent_sequences(family: str, fusion: str) -> None:
    network = network_of(family, fusion).eval()
    subsets = [
        tuple(int(i in present) for i in range(3))
        for size in (1, 2, 3)
        for present in combinations(range(3), size)
    ]
    available = flags(*subsets)
    clean = images(len(subsets))
    soiled = clean.clone()
    soiled[~available] = float("nan")
    with torch.no_grad():
        expected, found = network(clean, available)[0], network(soiled, available)[0]
        alone = network(clean[4:5], available[4:5])[0]
    assert torch.isfinite(found).all() and torch.equal(expected, found)
    torch.testing.assert_close(found[4:5], alone, rtol=1e-4, atol=1e-5)  # other items do not matter


@each_variant
def test_folding_is_the_same_function(family: str, fusion: str) -> None:
    network = network_of(family, fusion).eval()
    for present in ((1,), (0, 2)):
        row = tuple(int(i in present) for i in range(3))
        folded = fold_missing(network, tuple(TINY.sequences[i] for i in present))
        with torch.no_grad():
            full = network(images(), flags(row))[0]
            small = folded(images()[:, list(present)], torch.ones(1, len(present), dtype=torch.bool))[0]
        torch.testing.assert_close(small, full, rtol=1e-4, atol=1e-5)


@each_variant
def test_the_seed_decides_the_weights(family: str, fusion: str) -> None:
    spec = replace(TINY, family=family, fusion=fusion)  # type: ignore[arg-type]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_network(spec).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@each_variant
def test_state_dict_holds_every_weight_once_and_nothing_else(family: str, fusion: str) -> None:
    network = network_of(family, fusion)
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert sum(tensor.numel() for tensor in state.values()) == parameter_count(network)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert not list(network.buffers())


@each_variant
def test_bundles_carry_it(family: str, fusion: str, tmp_path: Path) -> None:
    network = network_of(family, fusion).eval()
    spec = network.spec
    assert network_from_json(network_to_json(spec)) == spec
    save_bundle(
        tmp_path / "model",
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        recipe=load_recipe("cord-lesion"),
        threshold=0.5,
        provenance={},
        card="Made of noise.",
        network=spec,
        dtype="float32",
    )
    loaded = load_network(load_bundle(tmp_path / "model"))  # on CPU with the axes turned
    available = flags((1, 0, 1))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(images(), available)[0], network(images(), available)[0], rtol=1e-3, atol=1e-4
        )


@each_variant
def test_a_few_steps_lower_the_loss(family: str, fusion: str) -> None:
    torch.manual_seed(0)
    network = build_network(replace(TINY, family=family, fusion=fusion)).train()  # type: ignore[arg-type]
    label = torch.zeros(2, *SHAPE, dtype=torch.long)
    label[:, 1:3, 2:5, 3:6] = 1
    inputs, available = images(2) + 2 * label[:, None], flags((1, 1, 0), (0, 1, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        outputs = network(inputs, available)
        loss = functional.cross_entropy(outputs[0], label)
        loss = loss + functional.cross_entropy(outputs[1], label[:, ::2, ::2, ::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_training_gives_finite_gradients(family: str) -> None:
    fusion = "attention" if family == "plain" else "linear"
    network = network_of(family, fusion).train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # not smaller: on CPU, torch 2.13's bfloat16 gradients of kernels can be NaN for maps of 2 by 4 by 4
        outputs = network(images(2, (8, 8, 8)), flags((1, 1, 0), (0, 0, 1)))
        sum(logits.float().square().mean() for logits in outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_cbam_weighs_places_in_full_precision_under_autocast() -> None:
    kernel, seen = network_of("cbam"), []
    for block in kernel.modules():
        if isinstance(block, ConvolutionalAttention):
            block.where.register_forward_hook(
                lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype))
            )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel(images(), flags((1, 1, 0)))
    assert seen and set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_strides_of_the_paper(family: str) -> None:
    network = build_network(NetworkSpec(family=family, channels=(2, 2, 4, 4, 4))).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        encoded = network.encode(torch.randn(1, 1, 16, 16, 32), flags((1,)))
        assert encoded.features.shape[2:] == (4, 2, 2, 2)
        assert [skip.shape[2:] for skip in encoded.skips] == [
            (16, 16, 32),
            (8, 8, 16),
            (4, 4, 8),
            (2, 2, 4),
        ]
        assert network.decode(network.fuse(encoded), encoded.skips)[0].shape == (1, 2, 16, 16, 32)


def test_names_of_the_plain_network_stay() -> None:
    """Packaged models and users' bundles name their weights like this."""
    with torch.device("meta"):
        found = set(build_network(replace(TINY, sequences=("T2Sag", "STIR"))).state_dict())
    layers = [f"{conv}.{part}" for conv in (0, 1) for part in (0, 1)]  # convolution and norm of both
    stages = [f"encoders.{name}.stages.{level}" for name in ("T2Sag", "STIR") for level in range(3)]
    stages += [f"decoder.stages.{level}" for level in range(2)]
    modules = [f"{stage}.{layer}" for stage in stages for layer in layers]
    modules += [f"decoder.{part}.{level}" for part in ("ups", "heads") for level in range(2)] + ["fusion"]
    assert found == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def test_mednext_is_as_large_as_the_published_one() -> None:
    halving = ((1, 1, 1), *[(2, 2, 2)] * 4)
    spec = NetworkSpec(
        family="mednext", channels=(32, 64, 128, 256, 512), strides=halving, deep_supervision=1
    )
    with torch.device("meta"):
        assert (
            parameter_count(build_network(spec)) == 5_550_914
        )  # MONAI's MedNeXtSmall, kernel 3, two classes


def test_swinunetr_is_as_large_as_the_published_one() -> None:
    halving = ((1, 1, 1), *[(2, 2, 2)] * 5)
    spec = NetworkSpec(
        family="swinunetr", channels=(48, 48, 96, 192, 384, 768), strides=halving, deep_supervision=1
    )
    with torch.device("meta"):
        found = parameter_count(build_network(spec))
    published = 62_186_708  # MONAI's SwinUNETR of feature size 48, two classes
    # smaller windows: (13**3 - 11**3) biases fewer for each head, two blocks a stage
    fewer = (13**3 - 11**3) * 2 * (3 + 6 + 12 + 24)
    biases = 384 + 192 + 96 + 48 + 48  # of the up-convolutions
    # scale and shift of the norms: three pairs in a block with a shortcut, two without
    norms = 2 * 3 * (48 + 384 + 192 + 96 + 48 + 48) + 2 * 2 * (48 + 96 + 192 + 768)
    assert found == published - fewer + biases + norms


def test_anchors_alone_carry_blocks_for_skips() -> None:
    network = build_network(replace(TINY, family="swinunetr", skips="anchor"), anchors=("STIR",))
    assert len(network.encoders["STIR"].skips) == 2
    assert len(network.encoders["T2Sag"].skips) == 0
    assert network.eval()(images(), flags((1, 1, 0)))[0].shape == (1, 2, *SHAPE)
