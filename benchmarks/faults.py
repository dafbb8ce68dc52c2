"""How a run survives SIGKILL at random times: of its parent, a worker, the inference process, or all at once.

    python benchmarks/faults.py WORK [--kills 50] [--seed 0] [--minutes M] [--model MODEL]

Makes a tiny synthetic dataset in WORK (three sessions: two slabs that are registered; a scan without a cord
mask; one with), runs it once undisturbed, and then, for each kill: starts the same command in a fresh output
folder, kills at a random time, looks whether anything under its final name differs from what the undisturbed
run wrote (a corrupt file), gives the same command again until it says that all is done - unless the run has
gone on to its end without the process that was killed - and compares every output with that of the
undisturbed run, byte for byte apart from dates and durations in JSON and pages. A hang is a command that
takes ten times as long as the undisturbed run, or longer than ``--patience`` where other work comes and goes.

Each kill is a line of WORK/campaign.jsonl. The command goes on where it was stopped (``--minutes``), shares
the work with others like it, and refuses to mix versions of the program. ``--model random`` makes a small
model of random weights.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

#: Dealt out in random order. "run": the parent; "all": every process at once, as schedulers do it.
TARGETS = ("run", "run", "run", "run", "worker", "worker", "worker", "inference", "inference", "all")
MAX_RESUMES, MAX_TRIES = 3, 6
HANG = 10  # times the undisturbed run
GRACE_S = 60.0  # in which processes of a killed run must have ended; a crowded machine is slow
POLL_S = 0.05
RECORDS = "campaign.jsonl"
DATES = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d{8}T\d{6}")
#: Differ between any two runs: when, how long, how much memory.
VOLATILE = ("logs/",)
VOLATILE_KEYS = ("started", "date", "seconds", "peak_memory_gb", "steps")
#: name → (voxels, spacing in mm, height of its centre in mm); axes are right, anterior, superior.
SAGITTAL = {"shape": (12, 40, 32), "spacing": (2.5, 1.0, 1.0)}
SCANS = {
    "acq-ax_T2starw": {"shape": (40, 40, 8), "spacing": (1.0, 1.0, 5.0), "height": 0.0},
    "acq-sag_chunk-1_T2w": {**SAGITTAL, "height": 9.0},
    "acq-sag_chunk-2_T2w": {**SAGITTAL, "height": -9.0},
}
#: subject → (scan, whether it has a cord mask); small, because most of the time goes into pictures of images
SUBJECTS: dict[str, tuple[tuple[str, bool], ...]] = {
    "01": (("acq-sag_chunk-1_T2w", True), ("acq-sag_chunk-2_T2w", True)),
    "02": (("acq-ax_T2starw", False),),
    "03": (("acq-ax_T2starw", True),),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One kill and what became of it; a line of the campaign's file."""

    number: int
    target: str
    during: tuple[str, ...]  # what the sessions were at
    survived: bool  # the run went on by itself, to exit code 0
    code: int | None  # of the same command, given again; None: it hung
    hung: bool
    left: int  # processes that went on
    gone_s: float = 0.0  # when the last of them had ended, after the run
    torn: tuple[str, ...]  # files under their final names that were not whole after the kill
    differ: tuple[str, ...]  # outputs that are not those of the undisturbed run in the end
    seconds: float

    @property
    def identical(self) -> bool:
        """Whether all ended well."""
        return self.code == 0 and not (self.hung or self.differ)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The undisturbed run: how long it took, what it computed, what it wrote."""

    seconds: float
    cpu_seconds: float
    contents: dict[str, bytes]


def make_dataset(root: Path) -> Path:
    """Small phantoms: a bright cord in a grey body, sagittal and axial, with cord masks."""
    rng = np.random.default_rng(0)
    for subject, scans in SUBJECTS.items():
        for rest, with_mask in scans:
            shape, spacing, height = SCANS[rest].values()
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + (0, 0, height)
            ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
            ras = ijk @ affine[:3, :3].T + affine[:3, 3]
            cord = np.hypot(ras[..., 0] - 2 * np.sin(ras[..., 2] / 15), ras[..., 1]) < 6
            body = 100 + 300 * cord + rng.integers(0, 40, shape)
            name = f"sub-{subject}_{rest}"
            _save(body.astype(np.int16), affine, root / f"sub-{subject}" / "anat" / f"{name}.nii.gz")
            if with_mask:
                masks = root / "derivatives" / "labels" / f"sub-{subject}" / "anat"
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


def random_model(folder: Path) -> Path:
    """A small lesion model of random weights; at its threshold it finds a few blobs."""
    import torch

    from bids_scseg.inference.bundle import save_bundle
    from bids_scseg.network.build import build_network
    from bids_scseg.recipe.load import load_recipe

    recipe = load_recipe("cord-lesion")
    spec = replace(recipe.network, channels=(4, 4, 8), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    rules = replace(recipe.inference, patch_vox=(48, 48, 64), overlap=0.25, min_volume_mm3=20.0)
    torch.manual_seed(3)
    weights = {name: value.detach().numpy() for name, value in build_network(spec).state_dict().items()}
    recipe = replace(recipe, network=spec, inference=rules)
    save_bundle(folder, weights, recipe=recipe, threshold=0.8, provenance={"data": "none"}, card="# Random")
    return folder


def command(dataset: Path, out: Path, model: str) -> list[str]:
    return [
        sys.executable, "-m", "bids_scseg", str(dataset), str(out), "participant", "--cord", "builtin",
        "-d", f"labels={dataset / 'derivatives' / 'labels'}", "--model", model, "--nprocs", "2",
        "--deterministic", "--device", "cpu",
    ]  # fmt: skip


def processes(parent: int) -> dict[str, list[int]]:
    """The run's own processes by kind."""
    found: dict[str, list[int]] = {"run": [parent], "worker": [], "inference": [], "other": []}
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            kind = (
                "inference"
                if b"inference.server" in words
                else "worker"
                if b"spawn_main" in words
                else "other"
            )
            found[kind].append(child)
    return found


def cpu_seconds(pids: list[int]) -> float:
    """What processes and their ended children have computed: how far a run is, whatever the load."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += sum(int(value) for value in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


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


def choose(target: str, kinds: dict[str, list[int]], chance: random.Random) -> list[int]:
    """The processes to kill; none if the run has none of that kind now."""
    if target == "all":
        return [pid for pids in kinds.values() for pid in pids]
    return [chance.choice(kinds[target])] if kinds[target] else []


def disturb(
    run: subprocess.Popen[bytes], target: str, whole: float, chance: random.Random
) -> tuple[list[int], list[int]]:
    """Kill at a random time of a run: (the killed, the others); none killed: it was over.

    Time is what all processes have computed, drawn over that of the undisturbed run; for workers and the
    inference process, over what is left of it when the first of them has appeared.
    """
    draw, at = chance.random(), None
    while run.poll() is None:
        kinds = processes(run.pid)
        everybody = [pid for pids in kinds.values() for pid in pids]
        spent = cpu_seconds(everybody)
        if at is None and (target == "all" or kinds[target]):
            at = spent + draw * max(0.0, whole - spent)
        victims = choose(target, kinds, chance) if at is not None and spent >= at else []
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if victims:
            return victims, [pid for pid in everybody if pid not in victims]
        time.sleep(POLL_S)
    return [], []


def activity(out: Path) -> tuple[str, ...]:
    """What each session was at: the youngest of its nodes' folders, or that it is done."""
    found = []
    for folder in sorted((out / "work").glob("sub-*")):
        if (out / folder.name / "anat" / f"{folder.name}_summary.json").is_file():
            found.append(f"{folder.name}: summary written")
            continue
        nodes = {path.parent for path in folder.glob("session/**/_inputs.pklz")}
        nodes |= {path.parent for path in folder.glob("session/**/_node.pklz")}
        youngest = max(nodes, key=lambda node: node.stat().st_mtime, default=None)
        found.append(f"{folder.name}: {youngest.name if youngest else 'start'}")
    return tuple(found)


def contents(out: Path) -> dict[str, bytes]:
    """Every output but logs and work files, without dates and durations."""
    found = {}
    for path in sorted(item for item in out.rglob("*") if item.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith("work/"):
            continue
        data = path.read_bytes()
        try:
            if name.endswith(".json"):
                data = json.dumps(_steady(json.loads(data)), sort_keys=True).encode()
        except ValueError:
            data = b"broken: " + data
        if name.startswith(VOLATILE) and not data.startswith(b"broken"):
            continue  # of those, that they can be read is all that is asked
        if name.endswith((".html", ".md")):
            data = DATES.sub(b"DATE", data)
        found[name] = data
    return found


def _steady(data: object) -> object:
    if isinstance(data, dict):
        return {key: _steady(value) for key, value in data.items() if key not in VOLATILE_KEYS}
    return [_steady(item) for item in data] if isinstance(data, list) else data


def differences(out: Path, expected: dict[str, bytes]) -> tuple[str, ...]:
    """Names of outputs that differ, are missing, or should not be there."""
    found = contents(out)
    return tuple(sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)))


def torn(out: Path, expected: dict[str, bytes]) -> tuple[str, ...]:
    """Names of files that are neither whole nor absent; what no reader looks for begins with a dot."""
    visible = {name: data for name, data in contents(out).items() if not Path(name).name.startswith(".")}
    return tuple(sorted(name for name, data in visible.items() if expected.get(name) != data))


def cycle(
    work: Path, number: int, target: str, *, whole: Whole, model: str, seed: int, limit: float
) -> Record:
    """One kill, one resumption, one comparison."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - when to kill is no secret
    out, log = work / f"out-{number:03d}", work / f"out-{number:03d}.log"
    line, start = command(work / "bids", out, model), time.monotonic()
    for _ in range(MAX_TRIES):
        shutil.rmtree(out, ignore_errors=True)
        with log.open("ab") as stream:
            run = subprocess.Popen(line, stdout=stream, stderr=stream)
        killed, others = disturb(run, target, whole.cpu_seconds, chance)
        if killed:
            break
    else:
        raise SystemExit(f"no {target} could be killed in {MAX_TRIES} runs")
    during = activity(out)
    first = _ended(run, limit)
    left, gone = _left(others)
    code, half = first, ()
    for _ in range(0 if first == 0 else MAX_RESUMES):
        half = half or torn(out, whole.contents)
        code = finish(line, log, limit)
        if code in (0, None):
            break
    return Record(
        number=number, target=target, during=during, survived=first == 0, code=code, left=left, gone_s=gone,
        torn=half, hung=first is None or code is None, differ=differences(out, whole.contents),
        seconds=round(time.monotonic() - start, 1),
    )  # fmt: skip


def _ended(run: subprocess.Popen[bytes], limit: float) -> int | None:
    """Exit code of a run that was disturbed; None if it hangs."""
    try:
        return run.wait(limit)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        return None


def _left(pids: list[int]) -> tuple[int, float]:
    """How many processes go on although their run is over, and the seconds in which the others ended."""
    start = time.monotonic()
    while (left := alive(pids)) and time.monotonic() < start + GRACE_S:
        time.sleep(POLL_S)
    return len(left), round(time.monotonic() - start, 1)


def targets(kills: int, seed: int) -> list[str]:
    """Which process to kill in each cycle: every ten cycles have them all."""
    dealt: list[str] = []
    chance = random.Random(seed)  # noqa: S311 - no secret
    while len(dealt) < kills:
        dealt += chance.sample(TARGETS, len(TARGETS))
    return dealt[:kills]


def code_sha256() -> str:
    """Checksum of the program's source code."""
    import bids_scseg

    digest, root = hashlib.sha256(), Path(bids_scseg.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def begin(work: Path, model: str) -> Whole:
    """The undisturbed run, made unless it is there."""
    note, out = work / "undisturbed.json", work / "undisturbed"
    if not note.is_file():
        shutil.rmtree(out, ignore_errors=True)
        make_dataset(work / "bids")
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        code = finish(command(work / "bids", out, model), work / "undisturbed.log", 3600)
        if code != 0:
            raise SystemExit(f"the undisturbed run ended with {code}, see {work / 'undisturbed.log'}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        facts = {"seconds": time.monotonic() - start, "cpu_seconds": spent, "code_sha256": code_sha256()}
        note.write_text(json.dumps(facts), encoding="utf-8")
        print(f"undisturbed: {facts['seconds']:.0f} s, {spent:.0f} s of one CPU", flush=True)
    facts = json.loads(note.read_text(encoding="utf-8"))
    if facts["code_sha256"] != code_sha256():
        raise SystemExit(f"{work} was begun with another version of the program; take another folder")
    return Whole(seconds=facts["seconds"], cpu_seconds=facts["cpu_seconds"], contents=contents(out))


def records(work: Path) -> list[Record]:
    """What has been found so far."""
    path = work / RECORDS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [
        Record(**{key: tuple(value) if isinstance(value, list) else value for key, value in item.items()})
        for item in map(json.loads, lines)
    ]


def append(work: Path, item: Record) -> None:
    """Keep what a cycle found, and its folder only if something is wrong."""
    with (work / RECORDS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(item)) + "\n")
    if item.identical and not item.torn:
        shutil.rmtree(work / f"out-{item.number:03d}")


@contextmanager
def claimed(work: Path, number: int) -> Iterator[bool]:
    """Whether a cycle is still to be done, and nobody else is doing it."""
    with (work / f"out-{number:03d}.lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield number not in {item.number for item in records(work)}


def summary(found: list[Record]) -> str:
    """The campaign in one sentence."""
    seconds = sorted(item.seconds for item in found)
    single = [item for item in found if item.target in ("worker", "inference")]
    return (
        f"{len(found)} kills ({dict(Counter(item.target for item in found))}): "
        f"{sum(item.hung for item in found)} hangs, {sum(item.left for item in found)} processes left, "
        f"{sum(bool(item.torn) for item in found)} corrupt, "
        f"{sum(bool(item.differ) for item in found)} outputs that differ, "
        f"{sum(item.identical for item in found)} identical; "
        f"{sum(item.survived for item in single)} of {len(single)} runs went on without a worker or the "
        f"inference process; median {seconds[len(seconds) // 2] if seconds else 0:.0f} s a cycle"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cycle after these")
    parser.add_argument("--patience", type=float, help="seconds, not ten times the undisturbed run")
    parser.add_argument("--model", default="cord-lesion", help="or 'random': one of random weights")
    arguments = parser.parse_args()
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    model = str(work / "random") if arguments.model == "random" else arguments.model
    with (work / "undisturbed.lock").open("ab") as stream:  # others like this one wait
        fcntl.flock(stream, fcntl.LOCK_EX)
        if arguments.model == "random" and not Path(model).is_dir():
            random_model(Path(model))
        whole = begin(work, model)
    limit = arguments.patience or HANG * whole.seconds
    dealt = targets(arguments.kills, arguments.seed)
    until = time.monotonic() + 60 * arguments.minutes
    for number, target in enumerate(dealt):
        with claimed(work, number) as free:
            if free and time.monotonic() < until:
                item = cycle(work, number, target, whole=whole, model=model, seed=arguments.seed, limit=limit)
                append(work, item)
                print(item, flush=True)
    print(summary(records(work)))


if __name__ == "__main__":
    main()
