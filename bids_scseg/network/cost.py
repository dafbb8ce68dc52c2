"""What a network costs: parameters, operations and time of one forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bids_scseg.network.build import SegmentationNet, build_network, parameter_count
from bids_scseg.network.spec import Size
from bids_scseg.recipe.model import NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Costs of a network for one patch of which all sequences are present.

    Attributes
    ----------
    parameters
        Number of weights.
    flops
        Floating-point operations of convolutions and matrix products, two for each multiplication with
        addition; norms, activations and sums are not counted.
    seconds
        Median over repeated passes in evaluation mode, float32.
    """

    parameters: int
    flops: int
    seconds: float


def measure_cost(
    spec: NetworkSpec, shape: Size, *, repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> Cost:
    """Costs of a network on the CPU, with as many threads as torch has.

    Parameters
    ----------
    spec
        What to build.
    shape
        Size of the patch, voxels; a multiple of the total stride along each axis.
    repeats
        Timed passes, after one that is not.
    clock
        As :func:`forward_seconds`.

    Raises
    ------
    DataError
        If the specification is inconsistent or the size does not fit.
    """
    network = build_network(spec).eval()
    return Cost(
        parameters=parameter_count(network),
        flops=forward_flops(spec, shape),
        seconds=forward_seconds(network, shape, repeats=repeats, clock=clock),
    )


def forward_flops(spec: NetworkSpec, shape: Size) -> int:
    """Operations of one forward pass as in :class:`Cost`; shapes alone are computed, so it takes no memory.

    Raises
    ------
    DataError
        As :func:`measure_cost`.
    """
    with torch.device("meta"):
        network = build_network(spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, len(spec.sequences), *shape, device="meta"), _all_present(spec))
    return int(counter.get_total_flops())


def forward_seconds(
    network: SegmentationNet, shape: Size, *, repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of a forward pass on one patch of noise, on the CPU, as in :class:`Cost`.

    ``clock`` tells the time: wall time, or ``time.process_time`` (all threads together) on a busy machine.

    Raises
    ------
    DataError
        As :func:`measure_cost`.
    """
    images = torch.randn(1, len(network.spec.sequences), *shape)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = clock()
            network(images, _all_present(network.spec))
            seconds.append(clock() - start)
    return statistics.median(seconds[1:])


def _all_present(spec: NetworkSpec) -> torch.Tensor:
    return torch.ones(1, len(spec.sequences), dtype=torch.bool)
