from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bids_scseg.errors import DataError
from bids_scseg.network.build import build_network, parameter_count
from bids_scseg.network.cost import forward_flops, forward_seconds, measure_cost
from bids_scseg.network.families import FAMILIES
from bids_scseg.recipe.model import NetworkSpec

TWO = NetworkSpec(channels=(2, 3), strides=((1, 1, 1), (2, 2, 2)), deep_supervision=1)
SHAPE = (4, 4, 4)


def test_operations_by_hand() -> None:
    # twice (multiply, add): encoder 64 places * 27 * (1*2 + 2*2), 8 places * 27 * (2*3 + 3*3);
    # up 64 places * 3*2 (each output has one kernel offset); decoder 64 * 27 * (4*2 + 2*2); head 64 * 2*2
    by_hand = 2 * (64 * 27 * 6 + 8 * 27 * 15 + 64 * 6 + 64 * 27 * 12 + 64 * 4)
    assert forward_flops(TWO, SHAPE) == by_hand


def test_every_sequence_counts() -> None:
    three = NetworkSpec(**{**asdict(TWO), "sequences": ("A", "B", "C")})
    encoder = 2 * (64 * 27 * 6 + 8 * 27 * 15)
    fusion = 2 * 8 * 9 * 3
    assert forward_flops(three, SHAPE) - forward_flops(TWO, SHAPE) == 2 * encoder + fusion


def test_fusing_attention_is_counted() -> None:
    three = NetworkSpec(**{**asdict(TWO), "sequences": ("A", "B", "C"), "fusion": "attention"})
    encoder = 2 * (64 * 27 * 6 + 8 * 27 * 15)
    # queries 8 places, keys and values 24, all of 3 channels; two products of 8 x 24 places; projection
    fusion = 2 * (8 * 9 + 24 * 9 * 2 + 2 * 8 * 24 * 3 + 8 * 9)
    assert forward_flops(three, SHAPE) - forward_flops(TWO, SHAPE) == 2 * encoder + fusion


def test_attention_is_counted() -> None:
    plain = NetworkSpec(channels=(4, 8), strides=TWO.strides, deep_supervision=1)
    block = NetworkSpec(family="nonlocal", channels=(4, 8), strides=TWO.strides, deep_supervision=1)
    # 8 places: four pointwise convolutions 8 <-> 4, and two products of 8 x 8 places with 4 channels
    assert forward_flops(block, SHAPE) - forward_flops(plain, SHAPE) == 2 * (4 * 8 * 32 + 2 * 64 * 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_alone_give_the_operations_of_a_real_pass(family: str) -> None:
    spec = NetworkSpec(
        family=family,  # type: ignore[arg-type]
        channels=(4, 4, 8),
        strides=((1, 1, 1), (2, 2, 2), (1, 1, 2)),
        sequences=("A", "B"),
        deep_supervision=1,
    )
    network = build_network(spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 2, 4, 4, 8), torch.ones(1, 2, dtype=torch.bool))
    assert forward_flops(spec, (4, 4, 8)) == counter.get_total_flops() > 0


def test_costs_together() -> None:
    cost = measure_cost(TWO, SHAPE, repeats=2)
    assert cost.parameters == parameter_count(build_network(TWO))
    assert cost.flops == forward_flops(TWO, SHAPE)
    assert 0 < cost.seconds < 60


def test_the_clock_is_an_argument() -> None:
    # one pass to warm up, then passes of 1, 5 and 2 ticks: the median is 2
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 25.0, 30.0, 32.0])
    network = build_network(TWO).eval()
    assert forward_seconds(network, SHAPE, repeats=3, clock=lambda: next(ticks)) == 2


def test_a_size_that_does_not_fit() -> None:
    with pytest.raises(DataError, match="multiples"):
        forward_flops(TWO, (4, 4, 5))


def test_counting_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forward_flops(TWO, SHAPE)
    assert torch.equal(before, torch.get_rng_state())
