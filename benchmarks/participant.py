"""Where the time of the participant level goes, per node.

    python benchmarks/participant.py BIDS_DIR [--nprocs N] [-- further options of bids_scseg]

Runs the participant level into a fresh folder and prints, over all sessions, seconds per step from the
sessions' own logs, with wall time and peak memory. Memory is the largest resident set of any one process
of the run (workers and inference are separate processes).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(dataset: Path, out: Path, options: list[str]) -> tuple[float, float, int]:
    """Run the participant level; (wall seconds, peak memory of one process in GB, exit code)."""
    start = time.monotonic()
    command = [sys.executable, "-m", "bids_scseg", str(dataset), str(out), "participant", *options]
    code = subprocess.run(command, check=False).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return time.monotonic() - start, peak, code


def step_rows(logs: list[dict[str, object]]) -> list[tuple[str, int, float, float, float]]:
    """(step, times run, median, maximum, total seconds) by total, numbered nodes of one kind together."""
    seconds: dict[str, list[float]] = {}
    for log in logs:
        for name, value in log["steps"]:
            seconds.setdefault(re.sub(r"_\d+$", "", name), []).append(value)
    rows = [(name, len(v), statistics.median(v), max(v), sum(v)) for name, v in seconds.items()]
    return sorted(rows, key=lambda row: -row[4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("options", nargs="*", help="after --: options of bids_scseg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        wall, peak, code = run(arguments.bids_dir, out, arguments.options)
        logs = [json.loads(path.read_text()) for path in sorted((out / "logs").glob("sub-*.json"))]
    done = [log for log in logs if log["state"] == "done"]
    total = sum(log["seconds"] for log in done)
    print(f"\n{len(done)} of {len(logs)} sessions done, exit code {code}")
    print(f"wall {wall:.0f} s, {wall / max(len(logs), 1):.0f} s per session; largest process {peak:.2f} GB")
    if done:
        times = sorted(log["seconds"] for log in done)
        print(f"session seconds: median {statistics.median(times):.0f}, max {times[-1]:.0f}\n")
        print(f"{'step':<16}{'runs':>6}{'median s':>10}{'max s':>8}{'total s':>9}{'share':>7}")
        for name, count, median, largest, summed in step_rows(done):
            print(f"{name:<16}{count:>6}{median:>10.2f}{largest:>8.2f}{summed:>9.1f}{summed / total:>7.0%}")


if __name__ == "__main__":
    main()
