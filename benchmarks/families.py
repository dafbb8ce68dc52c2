"""What the network families cost: parameters, operations, seconds for one patch.

    python benchmarks/families.py [--width 8] [--patch 48 48 96] [--sequences 1 6] [--threads 1] [--clock cpu]

Prints one table for each number of sequences, and the parameters of the paper's network by part, with the
sizes that are expected of them.
"""

from __future__ import annotations

import argparse
import time

import torch

from bids_scseg.network.build import build_network, parameter_count
from bids_scseg.network.cost import measure_cost
from bids_scseg.network.families import FAMILIES
from bids_scseg.network.spec import Size
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import NetworkSpec

PAPER_CHANNELS = (32, 64, 128, 256, 320)
EXPECTED_MILLIONS = {"encoder": 8.5, "decoder": 7.6, "six encoders": 59.0}
TOLERANCE = 0.01  # of the expected sizes, which are rounded
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def specification(family: str, fusion: str, *, width: int, sequences: int) -> NetworkSpec:
    """The paper's network at another width, of the first sequences of the default recipe."""
    names = load_recipe("cord-lesion").sequence_names[:sequences]
    channels = tuple(size * width // PAPER_CHANNELS[0] for size in PAPER_CHANNELS)
    return NetworkSpec(family=family, channels=channels, sequences=names, fusion=fusion)


def table(arguments: argparse.Namespace, sequences: int) -> None:
    """Costs of all families, those of the plain one as the unit of the last column."""
    shape: Size = tuple(arguments.patch)
    variants = [(name, "linear") for name in FAMILIES]
    variants += [("plain", "attention")] if sequences > 1 else []
    header = f"{'family':<20}{'parameters':>12}{'GFLOPs':>9}{'seconds':>9}{'x plain':>9}"
    print(f"\n{sequences} sequence(s), width {arguments.width}, patch {shape}\n{header}")
    unit = None
    for family, fusion in variants:
        spec = specification(family, fusion, width=arguments.width, sequences=sequences)
        cost = measure_cost(spec, shape, repeats=arguments.repeats, clock=CLOCKS[arguments.clock])
        unit = unit or cost.seconds
        name = family if fusion == "linear" else f"{family}, {fusion}"
        print(
            f"{name:<20}{cost.parameters:>12,}{cost.flops / 1e9:>9.2f}{cost.seconds:>9.2f}"
            f"{cost.seconds / unit:>9.1f}",
            flush=True,
        )


def paper_sizes() -> bool:
    """Print the paper's network by part; whether all parts have the size expected of them."""
    with torch.device("meta"):
        network = build_network(specification("plain", "linear", width=PAPER_CHANNELS[0], sequences=6))
    encoder = parameter_count(next(iter(network.encoders.values())))
    found = {
        "encoder": encoder,
        "decoder": parameter_count(network.decoder),
        "six encoders": parameter_count(network),
    }
    print("\nthe paper's network, millions of parameters")
    right = True
    for part, expected in EXPECTED_MILLIONS.items():
        millions = found[part] / 1e6
        fits = abs(millions / expected - 1) <= TOLERANCE
        right = right and fits
        print(
            f"{part:<14}{millions:>8.2f}  expected {expected:>5.1f}  {'as expected' if fits else 'DIFFERS'}"
        )
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=8, help="channels at full resolution")
    parser.add_argument("--patch", type=int, nargs=3, default=(48, 48, 96))
    parser.add_argument("--sequences", type=int, nargs="+", default=(1, 6))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    right = paper_sizes()
    for sequences in arguments.sequences:
        table(arguments, sequences)
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
