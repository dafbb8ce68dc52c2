from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.training.config import SamplingConfig, TrainingConfig
from bids_scseg.training.fit import examples_per_step
from bids_scseg.training.loader import Order


@given(first=st.integers(0, 50), turns=st.integers(1, 5), size=st.integers(1, 4), world=st.integers(1, 4))
def test_devices_share_out_every_example_once(first: int, turns: int, size: int, world: int) -> None:
    shares = [
        list(Order(first=first, batches=turns, size=size, rank=rank, world=world)) for rank in range(world)
    ]
    seen = [number for turn in range(turns) for share in shares for number in share[turn]]
    assert seen == list(range(first, first + turns * size * world))


def test_devices_take_the_place_of_accumulated_batches() -> None:
    one = list(Order(first=0, batches=4, size=2))
    two = [list(Order(first=0, batches=2, size=2, rank=rank, world=2)) for rank in (0, 1)]
    assert one == [two[0][0], two[1][0], two[0][1], two[1][1]]
    accumulated = TrainingConfig(name="a", recipe="r", sampling=SamplingConfig(batch=2, accumulate=2))
    spread = TrainingConfig(name="a", recipe="r", sampling=SamplingConfig(batch=2))
    assert examples_per_step(accumulated, 1) == examples_per_step(spread, 2) == 4
