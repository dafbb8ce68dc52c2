"""``scseg synth``: a synthetic data set from a frozen description."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_scseg.cli.description import check_version, read_description
from bids_scseg.cli.parser import _whole
from bids_scseg.errors import DataError, OutputError
from bids_scseg.options import available_cpus

KEYS = {"name": str, "generator": int, "seed": int, "subjects": int, "first": int, "sequences": list}
REQUIRED = ("name", "generator", "seed", "subjects")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSet:
    """A data set that anybody can draw again.

    Attributes
    ----------
    name
        For people.
    generator
        Version of the generator that it belongs to.
    seed, subjects, first
        Subject ``n``, of ``subjects`` from ``first`` on, depends on ``(seed, n)`` only.
    sequences
        Of every session; empty: all six.
    """

    name: str
    generator: int
    seed: int
    subjects: int
    first: int = 0
    sequences: tuple[str, ...] = ()


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "synth",
        help="write a synthetic data set, with truth, from its description",
        description="Write a synthetic BIDS dataset for training or testing, as a TOML file describes it.",
    )
    parser.add_argument("config", type=Path, help="description (TOML): name, generator, seed, subjects")
    parser.add_argument("output", type=Path, help="folder to write; must be empty or absent")
    parser.add_argument(
        "--nprocs", type=_whole, default=0, metavar="N", help="subjects at once (default: CPUs)"
    )
    parser.set_defaults(run=run_synth)


def run_synth(arguments: argparse.Namespace) -> None:
    """Write the data set."""
    from tqdm import tqdm

    from bids_scseg.synth.dataset import write_training_set
    from bids_scseg.synth.scenario import SIX

    wanted = read_set(arguments.config)
    out: Path = arguments.output
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("is there already and not an empty folder", file=out, remedy="name another folder")
    workers = min(arguments.nprocs or available_cpus(), wanted.subjects)
    with tqdm(total=wanted.subjects, desc="subjects", disable=not sys.stderr.isatty()) as bar:
        write_training_set(
            out,
            wanted.subjects,
            seed=wanted.seed,
            first=wanted.first,
            sequences=wanted.sequences or SIX,
            workers=workers,
            progress=bar.update,
        )
    sys.stderr.write(f"{wanted.name}: {wanted.subjects} synthetic subjects in {out}\n")


def read_set(path: Path) -> SyntheticSet:
    """Read the description of a data set.

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is malformed, or belongs to another version of the generator.
    """
    from bids_scseg.synth import GENERATOR_VERSION
    from bids_scseg.synth.scenario import ANCHORS

    data = read_description(path, kinds=KEYS, required=REQUIRED, out_of_range=_out_of_range)
    check_version(path, data["generator"], current=GENERATOR_VERSION, of="generator")
    names = tuple(data.pop("sequences", ()))
    if not set(names) <= set(ANCHORS):
        raise DataError(f"sequences {list(names)}", file=path, expected=f"names among {sorted(ANCHORS)}")
    return SyntheticSet(**data, sequences=names)


def _out_of_range(data: Mapping[str, Any]) -> list[str]:
    least = {"subjects": 1, "seed": 0, "first": 0}
    return [key for key, low in least.items() if data.get(key, low) < low]
