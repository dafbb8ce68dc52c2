"""How a run survives SIGKILL at random times: of its parent, its workers, its inference process.

    python benchmarks/faults.py WORK [--kills 50] [--seed 0] [--subjects 2] [--model MODEL]

Makes a tiny synthetic dataset in WORK, runs it once undisturbed, and then, for each kill: starts the same
command in a fresh output folder, kills one of its processes at a random time, gives the same command again
until it says that all is done, and compares every output with that of the undisturbed run, byte for byte
apart from dates and durations in JSON and pages. A hang is a command that takes ten times as long as that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

TARGETS = ("run", "run", "worker", "inference")  # drawn from; "run": the parent, the worst for what it leaves
MAX_RESUMES = 3
CHANCE = random.Random()  # noqa: S311 - when to kill is no secret
DATES = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d{8}T\d{6}")
#: Differ between any two runs: when, how long, how much memory.
VOLATILE = ("logs/",)
VOLATILE_KEYS = ("started", "date", "seconds", "peak_memory_gb", "steps")
SHAPE, SPACING = (48, 48, 14), (1.0, 1.0, 5.0)


@dataclass
class Tally:
    """What the campaign came to."""

    kills: Counter[str] = field(default_factory=Counter)
    early: int = 0
    hangs: int = 0
    corrupt: int = 0
    identical: int = 0
    orphans: int = 0
    seconds: list[float] = field(default_factory=list)


def make_dataset(root: Path, subjects: int) -> Path:
    """Small phantoms: a bright cord in a grey body, sagittal and axial, with cord masks."""
    rng = np.random.default_rng(0)
    for number in range(1, subjects + 1):
        for rest, axes in (("acq-ax_T2starw", (0, 1, 2)), ("acq-sag_T2w", (2, 1, 0))):
            shape = tuple(SHAPE[axis] for axis in axes)
            affine = np.eye(4)
            affine[:3, :3] = np.diag([SPACING[axis] for axis in axes])
            affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
            ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
            ras = ijk @ affine[:3, :3].T + affine[:3, 3]
            cord = np.hypot(ras[..., 0], ras[..., 1]) < 6
            body = 100 + 300 * cord + rng.integers(0, 40, shape)
            name = f"sub-{number:02d}_{rest}"
            _save(body.astype(np.int16), affine, root / f"sub-{number:02d}" / "anat" / f"{name}.nii.gz")
            masks = root / "derivatives" / "labels" / f"sub-{number:02d}" / "anat"
            _save(cord.astype(np.uint8), affine, masks / f"{name}_label-SC_seg.nii.gz")
    description = {"Name": "phantoms", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    return root


def _save(data: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)


def command(dataset: Path, out: Path, model: str) -> list[str]:
    return [
        sys.executable, "-m", "bids_scseg", str(dataset), str(out), "participant", "--cord", "builtin",
        "-d", f"labels={dataset / 'derivatives' / 'labels'}", "--model", model, "--nprocs", "2",
        "--deterministic", "--device", "cpu",
    ]  # fmt: skip


def processes(parent: int) -> dict[str, list[int]]:
    """The run's own processes by kind."""
    found: dict[str, list[int]] = {"run": [parent], "worker": [], "inference": []}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            owner = int(path.read_text().rsplit(")", 1)[1].split()[1])
            words = (path.parent / "cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue
        if owner == parent:
            kind = "inference" if b"inference.server" in words else "worker" if b"spawn_main" in words else ""
            found.setdefault(kind, []).append(int(path.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    left = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                left.append(pid)
        except OSError:
            continue
    return left


def finish(line: list[str], log: Path, limit: float) -> int | None:
    """Run a command to its end; its exit code, None if it hangs."""
    with log.open("ab") as stream:
        try:
            return subprocess.run(line, stdout=stream, stderr=stream, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            return None


def disturb(line: list[str], log: Path, *, target: str, after: float, limit: float, tally: Tally) -> bool:
    """Run a command and kill one of its processes after a time; whether it came to its end in time."""
    with log.open("ab") as stream:
        run = subprocess.Popen(line, stdout=stream, stderr=stream)
    try:
        run.wait(after)
        tally.early += 1  # done before its time came
        return True
    except subprocess.TimeoutExpired:
        pass
    kinds = processes(run.pid)
    victims = kinds.get(target) or kinds["run"]
    tally.kills[target if kinds.get(target) else "run"] += 1
    victim = CHANCE.choice(victims)
    os.kill(victim, signal.SIGKILL)
    others = [pid for pids in kinds.values() for pid in pids]
    try:
        run.wait(limit)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        return False
    if victim == run.pid:
        deadline = time.monotonic() + 10
        while alive(others) and time.monotonic() < deadline:
            time.sleep(0.05)
    tally.orphans += len(alive(others))
    return True


def contents(out: Path) -> dict[str, bytes]:
    """Every output but logs and work files, without dates and durations."""
    found = {}
    for path in sorted(item for item in out.rglob("*") if item.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith(("work/", *VOLATILE)):
            continue
        data = path.read_bytes()
        if name.endswith(".json"):
            data = json.dumps(_steady(json.loads(data)), sort_keys=True).encode()
        if name.endswith((".html", ".md")):
            data = DATES.sub(b"DATE", data)
        found[name] = data
    return found


def _steady(data: object) -> object:
    if isinstance(data, dict):
        return {key: _steady(value) for key, value in data.items() if key not in VOLATILE_KEYS}
    return [_steady(item) for item in data] if isinstance(data, list) else data


def differences(out: Path, expected: dict[str, bytes]) -> list[str]:
    """Names of outputs that differ, are missing, or should not be there."""
    try:
        found = contents(out)
    except ValueError as error:
        return [f"broken JSON: {error}"]
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def cycle(
    work: Path, number: int, expected: dict[str, bytes], limit: float, tally: Tally, model: str
) -> None:
    """One kill, one resumption, one comparison."""
    out, log = work / f"out-{number:03d}", work / f"out-{number:03d}.log"
    line = command(work / "bids", out, model)
    start = time.monotonic()
    target, after = CHANCE.choice(TARGETS), CHANCE.uniform(0.5, limit / 10)
    ended = disturb(line, log, target=target, after=after, limit=limit, tally=tally)
    code = None
    for _ in range(MAX_RESUMES if ended else 0):
        code = finish(line, log, limit)
        if code in (0, None):
            break
    wrong = differences(out, expected)
    tally.hangs += (not ended) or code is None
    tally.corrupt += bool(wrong)
    tally.identical += not wrong and code == 0
    tally.seconds.append(time.monotonic() - start)
    print(f"{number}: killed {target}, exit code {code}, {wrong[:5] or 'identical'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="cord-lesion")
    arguments = parser.parse_args()
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    CHANCE.seed(arguments.seed)
    make_dataset(work / "bids", arguments.subjects)
    start = time.monotonic()
    line = command(work / "bids", work / "undisturbed", arguments.model)
    code = subprocess.run(line, check=False).returncode
    once = time.monotonic() - start
    if code != 0:
        raise SystemExit(f"the undisturbed run ended with {code}")
    print(f"undisturbed: {once:.0f} s", flush=True)
    expected, tally = contents(work / "undisturbed"), Tally()
    for number in range(arguments.kills):
        cycle(work, number, expected, 10 * once, tally, arguments.model)
    median = sorted(tally.seconds)[len(tally.seconds) // 2] if tally.seconds else 0.0
    print(
        f"{arguments.kills} cycles ({dict(tally.kills)}; {tally.early} ended before the kill): "
        f"{tally.hangs} hangs, {tally.orphans} processes left, {tally.corrupt} outputs that differ, "
        f"{tally.identical} identical after resuming; median {median:.0f} s a cycle"
    )


if __name__ == "__main__":
    main()
