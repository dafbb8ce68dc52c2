"""The Boutiques descriptor of the BIDS App, built from its argument parser.

``python -m bids_scseg.cli.descriptor > boutiques.json`` writes it anew after an option changed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from bids_scseg import __version__
from bids_scseg.cli.parser import LEVELS, build_parser

Json: TypeAlias = "str | float | bool | list[Json] | dict[str, Json]"
Entry: TypeAlias = dict[str, Json]

SCHEMA_VERSION = "0.5"  # the only one that Boutiques 0.5.x accepts
IMAGE = f"bids_scseg:{__version__}"

# What Boutiques' BIDS validation looks for at the front of the command line, by these very keys.
FIXED_KEYS = ("[BIDS_DIR]", "[OUTPUT_DIR]", "[ANALYSIS_LEVEL]", "[PARTICIPANT_LABEL]", "[SESSION_LABEL]")
# Options answering with a text instead of a run; a descriptor has no place for them.
NO_RUN = frozenset({"help", "version"})
# Paths that are written, not read: as File, Boutiques would ask for something that exists.
WRITTEN = frozenset({"work_dir", "json_plan"})
# Numbers and their limits, as the parser's types enforce them (the unit test compares).
COUNT: Entry = {"integer": True, "minimum": 0}
NUMBERS: dict[str, Entry] = {
    "threshold": {"minimum": 0, "maximum": 1, "exclusive-minimum": True, "exclusive-maximum": True},
    "seed_threshold": {"minimum": 0, "maximum": 1, "exclusive-maximum": True},
    "min_volume": {"minimum": 0},
    "random_seed": COUNT,
    "nprocs": COUNT,
    "omp_nthreads": COUNT,
}

NAME_HELP = "Folder to create for the derivatives, or to go on with (participant level)"
FOLDER_HELP = "Folder that the participant level filled (group level)"


def build_descriptor(parser: argparse.ArgumentParser | None = None) -> Entry:
    """Descriptor with one input per option of the command line.

    Parameters
    ----------
    parser
        The parser to describe; that of ``bids_scseg`` by default.

    Returns
    -------
    dict
        Boutiques schema 0.5, in the form that ``bosh validate --bids`` asks for.
    """
    parser = parser or build_parser()
    options = [_option(action) for action in _options(parser)]
    # The labels come first, the rest in the order of --help.
    keys = dict.fromkeys([*FIXED_KEYS, *(str(entry["value-key"]) for entry in options)])
    return {
        "name": parser.prog,
        "tool-version": __version__,
        "description": parser.description or "",
        "author": "The bids_scseg developers",
        "command-line": f"mkdir -p [OUTPUT_DIR]; {parser.prog} {' '.join(keys)}",
        "container-image": {"type": "docker", "image": IMAGE},
        "schema-version": SCHEMA_VERSION,
        "inputs": [*_positionals(parser), *options],
        "groups": [_output_group()],
        "output-files": [_output()],
        "suggested-resources": {"cpu-cores": 2, "ram": 4},
        "tags": {"domain": ["neuroinformatics", "mri"], "app-type": "bids"},
    }


def descriptor_text() -> str:
    """The content of ``boutiques.json``: indented JSON with a final line break."""
    return json.dumps(build_descriptor(), indent=2, ensure_ascii=False) + "\n"


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no public way to list them
        if action.option_strings and action.dest not in NO_RUN:
            yield action


def _long_flag(action: argparse.Action) -> str:
    return next(flag for flag in action.option_strings if flag.startswith("--"))


def _option(action: argparse.Action) -> Entry:
    flag = _long_flag(action)
    name = flag.removeprefix("--").replace("-", "_")
    entry: Entry = {
        "id": name,
        "name": _title(name),
        "description": _sentence(action.help),
        "type": _type(action),
        "value-key": f"[{name.upper()}]",
        "command-line-flag": flag,
        "optional": True,
    }
    entry.update(NUMBERS.get(action.dest, {}))
    if action.choices is not None:
        entry["value-choices"] = list(action.choices)
    if action.nargs == "+":
        entry["list"] = True
        entry["min-list-entries"] = 1
    return entry


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    if action.dest in NUMBERS:
        return "Number"
    return "File" if action.type is Path and action.dest not in WRITTEN else "String"


def _sentence(text: str | None) -> str:
    text = text or ""
    return text[:1].upper() + text[1:]


def _positionals(parser: argparse.ArgumentParser) -> list[Entry]:
    helps = {action.dest: _sentence(action.help) for action in parser._actions if not action.option_strings}
    # The output folder is one argument but two inputs, as Boutiques' BIDS form has it: a name to create,
    # or a folder that exists.
    return [
        _positional("bids_dir", "BIDS_DIR", text=helps["bids_dir"], kind="File"),
        _positional("output_dir_name", "OUTPUT_DIR", text=NAME_HELP) | {"optional": True},
        _positional("participant_level_dir", "OUTPUT_DIR", text=FOLDER_HELP, kind="File")
        | {"optional": True},
        _positional("analysis_level", "ANALYSIS_LEVEL", text=helps["analysis_level"])
        | {"value-choices": list(LEVELS)},
    ]


def _positional(name: str, key: str, *, text: str, kind: str = "String") -> Entry:
    return {
        "id": name,
        "name": _title(name),
        "description": text,
        "type": kind,
        "value-key": f"[{key}]",
        "optional": False,
    }


def _title(name: str) -> str:
    title = name.replace("_", " ").replace(" dir", " folder").capitalize()
    return re.sub(r"(?i)\bbids\b", "BIDS", title)


def _output_group() -> Entry:
    return {
        "id": "output_directory",
        "name": "Output directory",
        "description": "Exactly one of the two says where the results are.",
        "members": ["output_dir_name", "participant_level_dir"],
        "mutually-exclusive": True,
        "one-is-required": True,
    }


def _output() -> Entry:
    return {
        "id": "output_dir",
        "name": "Output directory",
        "description": "BIDS derivatives: masks, tables, geometry, reports and logs.",
        "path-template": "[OUTPUT_DIR]",
        "optional": False,
    }


if __name__ == "__main__":
    sys.stdout.write(descriptor_text())
