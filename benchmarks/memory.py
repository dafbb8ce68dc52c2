"""Estimated and measured memory of each node.

    python benchmarks/memory.py [--table] BIDS_DIR OUT [-- further options of bids_scseg]

Runs the participant level into OUT, a fresh folder, and prints for each session and kind of node the
estimate, by which sessions are admitted, and the largest resident memory that its worker had meanwhile.
``--table`` prints that of a run that is there; with the options of the run, which decide on its images.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

#: Beginning of a node's name → its kind; what is not among them (merging lists) needs nothing to speak of.
KINDS = {
    r"(given|clean|find|sct)_cord": "cord", "prepare": "prepare", "segment|sct_lesions": "segment",
    "measure": "measure", "write": "write", "report": "report",
}  # fmt: skip


def program(arguments: argparse.Namespace, *more: str) -> list[str]:
    """The participant level."""
    places = [str(arguments.bids_dir), str(arguments.out), "participant"]
    return [sys.executable, "-m", "bids_scseg", *places, *arguments.options, *more]


def estimates(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Session → kind of node → GB, of the dry run."""
    command = program(arguments, "--dry-run", "--json-plan", "-")
    plans = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["sessions"]
    labels = [f"sub-{p['subject']}" + (f"_ses-{p['session']}" if p["session"] else "") for p in plans]
    return {label: plan["node_memory_gb"] for label, plan in zip(labels, plans, strict=True)}


def measured(log: dict[str, list[tuple[str, float]]]) -> dict[str, float]:
    """Kind of node → largest GB, of a session's log."""
    found: dict[str, float] = {}
    for step, need in log["memory"]:
        for pattern, kind in KINDS.items():
            if re.match(pattern, step):
                found[kind] = max(found.get(kind, 0.0), need)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", action="store_true", help="of the run that is in OUT")
    parser.add_argument("options", nargs="*", help="after --: options of bids_scseg")
    arguments = parser.parse_args()
    if not arguments.table:
        subprocess.run(program(arguments), check=False)
    print(f"{'session':<20}{'node':<10}{'estimate':>10}{'measured':>10}{'ratio':>8}")
    for label, needs in estimates(arguments).items():
        path = arguments.out / "logs" / f"{label}.json"
        if not path.is_file():
            continue
        found = measured(json.loads(path.read_text(encoding="utf-8")))
        largest = {"session": max(needs.values(), default=0.0)}, {"session": max(found.values(), default=0.0)}
        for kind, need in {**needs, **largest[0]}.items():
            there = {**found, **largest[1]}.get(kind, 0.0)
            print(f"{label:<20}{kind:<10}{need:>10.2f}{there:>10.2f}{there / need if need else 0:>8.0%}")


if __name__ == "__main__":
    main()
