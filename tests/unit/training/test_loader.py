from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import DataError
from bids_scseg.training.config import SamplingConfig, TrainingConfig
from bids_scseg.training.fit import examples_per_step
from bids_scseg.training.loader import Order, make_loader
from bids_scseg.training.sample import Sample


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


class Broken:
    """A source whose every example is wrong."""

    def sample(self, index: int) -> Sample:
        raise DataError("no share of cord", file=f"sub-{index:02d}", expected="cord_share.npy")

    def summary(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_an_example_arrives_whole_in_its_place(workers: int) -> None:
    order = Order(first=3, batches=1, size=2)
    (batch,) = make_loader(Broken(), order, sampling=SamplingConfig(workers=workers))
    assert isinstance(batch, DataError)
    assert (batch.file, batch.expected) == ("sub-03", "cord_share.npy")
