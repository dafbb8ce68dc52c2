"""``scseg model info|verify|set|export``: what a bundle is, whether it is sound, whose it is, other forms."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bids_scseg.errors import DataError, UsageError

MODEL_HELP = "name of a packaged model, or a bundle's folder"
FORMATS = ("onnx", "monai")


def add_parser(commands: Any) -> None:
    """Add ``model`` and its actions to the commands of ``scseg``."""
    model = commands.add_parser("model", help="describe, check, sign or export a model bundle")
    actions = model.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = actions.add_parser("info", help="everything that a bundle says of itself")
    info.add_argument("model", metavar="NAME_OR_PATH", help=MODEL_HELP)
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=run_model, act=run_info)
    verify = actions.add_parser("verify", help="check files, weights and a forward pass; runs no code of it")
    verify.add_argument("model", metavar="NAME_OR_PATH", help=MODEL_HELP)
    verify.set_defaults(run=run_model, act=run_verify)
    _add_set(actions)
    export = actions.add_parser(
        "export", help="write the network for other programs, and compare its numbers"
    )
    export.add_argument("model", metavar="NAME_OR_PATH", help=MODEL_HELP)
    export.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    export.add_argument(
        "--sequences",
        nargs="+",
        default=(),
        metavar="NAME",
        help="for these available sequences only: a smaller network without availability flags",
    )
    export.set_defaults(run=run_model, act=run_export)


def _add_set(actions: Any) -> None:
    state = actions.add_parser(
        "set",
        help="write licence, authors and contact into a bundle; weights and checksums stay",
        description="What is not named stays as it is.",
    )
    state.add_argument("model", metavar="DIR", help="a bundle's folder")
    state.add_argument("--license", metavar="SPDX", help="of the weights, such as CC-BY-4.0")
    state.add_argument("--authors", nargs="+", metavar="NAME", help="instead of those recorded")
    state.add_argument("--contact", metavar="TEXT", help="mail address or page")
    state.set_defaults(run=run_model, act=run_set)


def run_model(arguments: argparse.Namespace) -> None:
    """Carry out the chosen action."""
    act: Callable[[argparse.Namespace], None] = arguments.act
    act(arguments)


def run_info(arguments: argparse.Namespace) -> None:
    """Describe a bundle on standard output."""
    from bids_scseg.inference.bundle import load_bundle
    from bids_scseg.inference.describe import describe, describe_text

    bundle = load_bundle(arguments.model)
    if arguments.json:
        sys.stdout.write(json.dumps(describe(bundle), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(describe_text(bundle))


def run_verify(arguments: argparse.Namespace) -> None:
    """Write a line for each check on standard output.

    Raises
    ------
    DataError
        If one of them failed.
    """
    from bids_scseg.inference.describe import printable
    from bids_scseg.inference.verify import verify

    _, checks = verify(arguments.model)
    for check in checks:
        name = check.name if check.state == check.name else f"{check.state}  {check.name}"
        line = f"{name}: {check.text}" if check.text else name
        sys.stdout.write(printable(line) + "\n")
    failed = [check.name for check in checks if check.state == "fail"]
    if failed:
        raise DataError(f"{failed[0]}: failed", file=arguments.model, remedy="do not use this model")


def run_set(arguments: argparse.Namespace) -> None:
    """Write who stands behind a bundle into it.

    Raises
    ------
    UsageError
        If nothing is to be written.
    """
    from bids_scseg.inference.imprint import imprint

    wanted = {name: getattr(arguments, name) for name in ("license", "authors", "contact")}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if not changes:
        raise UsageError("nothing to write", expected="--license, --authors or --contact")
    facts = imprint(arguments.model, **changes).facts
    sys.stdout.write(
        f"licence: {facts.license or 'not recorded'}\n"
        f"authors: {'; '.join(facts.authors) or 'not recorded'}\n"
        f"contact: {facts.contact or 'not recorded'}\n"
    )


def run_export(arguments: argparse.Namespace) -> None:
    """Write a bundle in another form."""
    from bids_scseg.inference.bundle import load_bundle

    bundle, sequences = load_bundle(arguments.model), tuple(arguments.sequences)
    if arguments.format == "onnx":
        from bids_scseg.inference.export import export_onnx

        done = export_onnx(bundle, arguments.out, sequences=sequences)
    else:
        from bids_scseg.inference.monai_bundle import export_monai

        done = export_monai(bundle, arguments.out, sequences=sequences)
    sys.stdout.write(
        f"{done.path}\nlargest difference of probabilities from PyTorch: {done.difference:.1e} "
        f"({done.checked} choices of sequences, {done.tolerance:.0e} allowed)\n"
    )
