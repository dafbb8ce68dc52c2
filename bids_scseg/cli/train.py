"""``scseg train``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from bids_scseg.cli.app import stoppable

#: As ``training.checkpoint.TENSORS`` (a test compares), which would load torch here.
CHECKPOINT = "checkpoint.safetensors"


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``scseg``."""
    from bids_scseg.training.parse import packaged_configs

    names = " or ".join(packaged_configs())
    train = commands.add_parser(
        "train",
        help="train a model from a configuration and prepared cases",
        description="Train a model; the same command goes on after an interruption.",
    )
    train.add_argument("config", metavar="CONFIG", help=f"training configuration: {names}, or a TOML file")
    train.add_argument(
        "--show",
        action=_Show,
        metavar="CONFIG",
        help="print a configuration, for a file of your own, and end",
    )
    train.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of prepared cases; with --synthetic: held-out ones"
    )
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for logs, checkpoints and the model"
    )
    train.add_argument(
        "--synthetic", action="store_true", help="train on synthetic sessions, drawn while it runs"
    )
    train.add_argument("--seed", type=int, metavar="S", help="instead of the configuration's")
    train.add_argument("--devices", type=int, metavar="N", help="GPUs to use at once; 0: all of them")
    train.add_argument(
        "--deterministic", action="store_true", help="only operations that give the same bits every time"
    )
    train.set_defaults(run=run_train)


class _Show(argparse.Action):
    """Print a configuration and end, whatever else is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        from bids_scseg.training.parse import find_config

        sys.stdout.write(find_config(values).read_text("utf-8"))
        parser.exit()


def run_train(arguments: argparse.Namespace) -> None:
    """Train a model; an interruption is one line that says how to go on."""
    with stoppable(lambda: _last_words(arguments.out)):
        _train(arguments)


def _last_words(out: Path) -> str:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return ""  # of several devices' processes the first speaks
    if (out / CHECKPOINT).is_file():
        return f"stopped; the same command goes on from the last checkpoint in {out}"
    return f"stopped before the first checkpoint; the same command begins anew in {out}"


def _train(arguments: argparse.Namespace) -> None:
    from bids_scseg.training.config import config_from_mapping
    from bids_scseg.training.console import Console
    from bids_scseg.training.parse import merge, read_mapping
    from bids_scseg.training.train import train
    from bids_scseg.training.validate import end_of_candidates

    wanted = {name: getattr(arguments, name) for name in ("seed", "devices", "deterministic")}
    changes = {key: value for key, value in wanted.items() if value is not None and value is not False}
    if arguments.synthetic:
        changes["data"] = {"synthetic": True}
    config = config_from_mapping(merge(read_mapping(arguments.config), changes), file=arguments.config)
    training = train(
        config, arguments.data, out=arguments.out, display=Console(sys.stderr), file=arguments.config
    )
    if training.scores is not None:
        scores = training.scores.to_json()
        shown = ", ".join(f"{key} {scores[key]}" for key in ("sensitivity", "precision", "f1", "dice"))
        seed = f" (seed {scores['seed_threshold']})" if scores["seed_threshold"] else ""
        sys.stderr.write(f"held-out subjects at threshold {scores['threshold']}{seed}: {shown}\n")
        candidates = config.validation.thresholds if training.scores.lesions else ()
        if end := end_of_candidates(training.scores.threshold, candidates):
            sys.stderr.write(
                f"this is the {end} candidate: the best may lie beyond; add candidates to "
                "validation.thresholds and give the same command again, which repeats the choice alone\n"
            )
    sys.stderr.write(f"model bundle: {training.bundle.path}\n")
