"""``scseg synth``: a synthetic data set from a frozen description."""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_scseg.cli.parser import _whole
from bids_scseg.errors import DataError, MissingInputError, OutputError
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

    if not path.is_file():
        raise MissingInputError("no such description", file=path, expected="a TOML file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid TOML ({error})", file=path) from error
    wrong = [key for key, value in data.items() if key not in KEYS or type(value) is not KEYS[key]]
    wrong += [key for key in REQUIRED if key not in data]
    if wrong or data["subjects"] < 1 or min(data["seed"], data.get("first", 0)) < 0:
        raise DataError(
            f"keys {wrong or ['subjects, seed or first']}",
            file=path,
            expected=", ".join(f"{key} ({kind.__name__})" for key, kind in KEYS.items()),
        )
    if data["generator"] != GENERATOR_VERSION:
        raise DataError(
            f"drawn by version {data['generator']} of the generator",
            file=path,
            expected=f"version {GENERATOR_VERSION}, which this program has",
            remedy="install the release that made it: another generator gives other subjects",
        )
    names = tuple(data.pop("sequences", ()))
    if not set(names) <= set(ANCHORS):
        raise DataError(f"sequences {list(names)}", file=path, expected=f"names among {sorted(ANCHORS)}")
    return SyntheticSet(**data, sequences=names)
