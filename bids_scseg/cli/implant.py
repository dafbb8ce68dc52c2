"""``scseg implant``: synthetic lesions in real scans."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_scseg.cli.description import check_version, read_description
from bids_scseg.cli.parser import _both, _label, _whole
from bids_scseg.errors import MissingInputError, OutputError, UsageError

METHODS = ("outline", "field")
MOST_COPIES, MOST_LESIONS = 99, 20  # names of copies have two digits; more lesions find no room
#: Keys of a description, with their types.
KEYS = {
    "name": str, "implant": int, "seed": int, "copies": int, "free_share": float, "method": str,
    "lesions": float,
}  # fmt: skip
REQUIRED = ("implant", "seed")


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "implant",
        help="put synthetic lesions into real scans, with truth",
        description="Write a BIDS dataset of the real scans of another, with synthetic lesions in their "
        "cords and the truth in derivatives/labels.",
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS", help="dataset of scans without lesions")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; must be empty or absent")
    parser.add_argument(
        "--masks", type=Path, nargs="+", default=[], metavar="DIR",
        help="derivatives folders with cord masks, the most trusted first (default: all in BIDS/derivatives)",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the options below")
    parser.add_argument("--seed", type=_whole, metavar="S", help="the same seed gives the same bytes")
    parser.add_argument(
        "--copies", type=_whole, metavar="N",
        help="differently seeded implants of each session, as sessions of the same subject (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--free-share", type=_share, metavar="F", help="share of copies without lesions (default 0.125)"
    )
    parser.add_argument(
        "--method", choices=METHODS, help="how lesions are drawn; field is for tests (default outline)"
    )
    parser.add_argument(
        "--lesions", type=_count, metavar="X",
        help="mean number of lesions beyond the first in 160 mm of cord (default 1.6)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default="cord-lesion", metavar="NAME|FILE", help="which sequences there are"
    )
    for name, prefix in (("participant-label", "sub-"), ("session-label", "ses-"),
                         ("exclude-participant-label", "sub-")):  # fmt: skip
        parser.add_argument(f"--{name}", nargs="+", type=_label(prefix), default=[], metavar="LABEL")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove what OUT holds, if it is such a dataset"
    )
    parser.add_argument("--nprocs", type=_whole, default=1, metavar="N", help="sessions at once (default 1)")
    parser.add_argument("--skip-bids-validation", action="store_true", help="take names as they are")
    parser.add_argument(
        *_both("follow-links"), dest="follow_links", action="store_true",
        help="use images that are links to places outside of the dataset",
    )  # fmt: skip
    parser.set_defaults(run=run_implant)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _count(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST_LESIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and {MOST_LESIONS}")
    return value


def run_implant(arguments: argparse.Namespace) -> None:
    """Write the dataset."""
    from bids_scseg.bids.query import find_studies
    from bids_scseg.recipe.load import load_recipe
    from bids_scseg.synth.implant_files import Job, write_implanted
    from bids_scseg.synth.implanted import ImplantSettings

    settings = ImplantSettings(**implant_settings(arguments))
    out: Path = arguments.output
    studies = find_studies(
        arguments.bids_dir,
        participants=arguments.participant_label,
        sessions=arguments.session_label,
        exclude=arguments.exclude_participant_label,
        validate_names=not arguments.skip_bids_validation,
        follow_links=arguments.follow_links,
    )
    job = Job(
        out=out,
        recipe=load_recipe(arguments.recipe),
        masks=mask_folders(arguments.masks, arguments.bids_dir),
        settings=settings,
        follow_links=arguments.follow_links,
    )
    make_room(out, arguments.bids_dir, overwrite=arguments.overwrite)
    done = 0

    def progress(record: Any) -> None:
        nonlocal done
        done += 1
        sys.stderr.write(f"[{done}/{len(studies)}] {describe(record)}\n")

    summarise(write_implanted(studies, job, workers=max(1, arguments.nprocs), progress=progress), arguments)


def summarise(records: Sequence[Any], arguments: argparse.Namespace) -> None:
    """Say what was written.

    Raises
    ------
    MissingInputError
        If nothing was.
    """
    out: Path = arguments.output
    sources = [source for record in records for source in record.sources]
    painted = sum(not source.reason for source in sources)
    lesions = sum(int(str(row["lesions"])) for record in records for _, row in record.sessions)
    sessions = sum(len(record.sessions) for record in records)
    sys.stderr.write(
        f"{sessions} sessions with {lesions} lesions in {out}; {painted} images painted, "
        f"{len(sources) - painted} left out: {out / 'derivatives' / 'labels' / 'images.tsv'}\n"
    )
    if not sessions:
        raise MissingInputError(
            "no image has a cord mask",
            file=arguments.bids_dir,
            expected="masks in a derivatives folder, e.g. those that bids_scseg writes",
            remedy="run bids_scseg on the dataset and give its output as --masks",
        )


def describe(record: Any) -> str:
    """One line on a session."""
    painted = [source for source in record.sources if not source.reason]
    name = (
        record.sources[0].image.relative.split("/anat")[0] if record.sources else "a session without images"
    )
    if not painted:
        reasons = sorted({source.reason for source in record.sources if source.reason})
        return f"{name}: left out ({'; '.join(reasons)})"
    counts = ", ".join(str(row["lesions"]) for _, row in record.sessions)
    return f"{name}: {' '.join(source.sequence for source in painted)}; lesions: {counts}"


def implant_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of the command line over those of the description."""
    values = read_settings(arguments.config) if arguments.config else {}
    for key in ("seed", "copies", "free_share", "method", "lesions"):
        given = getattr(arguments, key)
        if given is not None:
            values[key] = given
    if "seed" not in values:
        raise UsageError("no seed", expected="--seed S, or a description with one")
    if not 1 <= values.get("copies", 1) <= MOST_COPIES:
        raise UsageError(f"{values['copies']} copies", expected=f"1 to {MOST_COPIES}")
    return values


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a TOML file.

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is malformed, or belongs to another version.
    """
    from bids_scseg.synth import IMPLANT_VERSION

    data = read_description(path, kinds=KEYS, required=REQUIRED, out_of_range=_out_of_range)
    check_version(path, data["implant"], current=IMPLANT_VERSION, of="implants")
    return {key: value for key, value in data.items() if key not in ("name", "implant")}


def _out_of_range(data: Mapping[str, Any]) -> list[str]:
    right = {
        "method": data.get("method", METHODS[0]) in METHODS,
        "free_share": 0 <= data.get("free_share", 0.0) <= 1,
        "lesions": 0 <= data.get("lesions", 0.0) <= MOST_LESIONS,
        "seed": data["seed"] >= 0,
        "copies": 1 <= data.get("copies", 1) <= MOST_COPIES,
    }
    return [key for key, fits in right.items() if not fits]


def mask_folders(asked: list[Path], dataset: Path) -> tuple[Path, ...]:
    """Derivatives folders with cord masks.

    Raises
    ------
    MissingInputError
        If one that was asked for does not exist, or none was and the dataset has none.
    """
    if not asked:
        root = dataset / "derivatives"
        asked = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = []
    for path in asked:
        place = next((p for p in (path, dataset / path) if p.is_dir()), None)
        if place is None:
            raise MissingInputError(
                "no such folder", file=path, expected="a derivatives folder", remedy="check --masks"
            )
        found.append(place.resolve())
    if not found:
        raise MissingInputError(
            "no derivatives folder", file=dataset, expected="cord masks",
            remedy="run bids_scseg on the dataset and give its output as --masks",
        )  # fmt: skip
    return tuple(found)


def make_room(out: Path, dataset: Path, *, overwrite: bool) -> None:
    """See that the output folder is empty.

    Raises
    ------
    OutputError
        If it is not, or lies where the source dataset lies.
    """
    here, there = out.resolve(), dataset.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise OutputError(
            "lies within the source dataset, or the other way round", file=out, remedy="name another"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    ours = out / "dataset_description.json"
    if not overwrite or not ours.is_file() or "bids_scseg implant" not in ours.read_text(encoding="utf-8"):
        raise OutputError(
            "is there already and not an empty folder", file=out,
            remedy="name another folder" if overwrite else "name another folder, or --overwrite",
        )  # fmt: skip
    for entry in os.scandir(out):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
