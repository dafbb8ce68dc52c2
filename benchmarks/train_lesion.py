"""The packaged lesion model from nothing: data, stages, models of folds, the same for all subjects.

Usage:
    python benchmarks/train_lesion.py WORK --real REAL [--jobs 2] [--until data|phantoms|real|judge]

REAL is a BIDS dataset of cords without lesions, with cord masks under ``derivatives/labels``. Everything goes
into WORK; what is finished there is not done again, and a training that was stopped goes on from its last
checkpoint. ``configs/cord-lesion/`` has the stages, ``folds.json`` there says which of REAL's subjects each
model of a fold does not see. The last step judges these models (``implant_folds.py``) and prints the command
that makes the bundle of their weights (``finish_lesion.py``). Each training takes one core; the first three
stages are one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "cord-lesion"
PHANTOM_STAGES = ("1-phantoms", "2-more-phantoms", "3-grey-matter")
DEMO_SUBJECTS, DEMO_SEED = 60, 9001
MIXED = 60  # computed subjects of the training generator beside the real ones in the last stage
ALL = "all"  # the model that sees every subject
ASIDE = 6  # computed subjects that are held out in the last stage


def run(log, *command):
    """A command with its output in a file; ends the script with the file's name if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run([*map(str, command)], stdout=out, stderr=out, env=env, check=False).returncode
    print(f"{log.stem}: exit {code}, {time.monotonic() - started:.0f} s", flush=True)
    if code:
        sys.exit(f"{log.stem} failed: see {log}")


def scseg(log, *arguments):
    """A command of the program."""
    run(log, sys.executable, "-m", "bids_scseg.cli.tools", *arguments)


class Work:
    """The folder with its parts."""

    def __init__(self, root, *, real, jobs):
        self.root, self.real, self.jobs = root.resolve(), real.resolve(), jobs

    def log(self, name):
        """File for a command's output."""
        return self.root / "logs" / f"{name}.log"

    def once(self, name, make):
        """Make a folder unless a mark says that it is complete; its place."""
        place, mark = self.root / name, self.root / "done" / name.replace("/", "-")
        if not mark.exists():
            make(place)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return place

    def prepared(self, name, write, *options):
        """A dataset written by ``write(place)``, prepared for training."""
        raw = self.once(f"bids/{name}", write)

        def prepare(place):
            labels = raw / "derivatives" / "labels"
            log = self.log(f"prepare-{name}")
            scseg(log, "prepare", raw, place, "--labels", labels, "--nprocs", self.jobs, *options)

        return self.once(f"prepared/{name}", prepare)


def phantoms(work):
    """Computed sessions: the demo's, and two sets of the training generator's."""

    def demo(place):
        scseg(work.log("demo"), "demo", place, "--subjects", DEMO_SUBJECTS, "--seed", DEMO_SEED)

    work.prepared("demo", demo, "--jitter", "0.4")
    for name, config in (
        ("more", ROOT / "configs" / "walsh2024-data.toml"),
        ("phantoms", CONFIGS / "phantoms.toml"),
    ):
        work.prepared(
            name,
            lambda place, name=name, config=config: scseg(work.log(name), "synth", config, place),
            "--no-registration", "--jitter", "0.4",
        )  # fmt: skip


def implants(work):
    """Real cords with lesions for training, beside some of the computed sessions."""

    def implant(place):
        config = ROOT / "configs" / "implant-train.toml"
        scseg(work.log("implant"), "implant", work.real, place, "--config", config)

    def mix(place):
        computed = sorted((work.root / "prepared" / "more").glob("sub-*"))[:MIXED]
        for source in (real, work.root / "prepared" / "demo", *computed):
            shutil.copytree(source, place / source.name, copy_function=os.link, dirs_exist_ok=True)

    real = work.prepared("real", implant, "--no-registration", "--jitter", "0.4")
    return work.once("mix", mix)


def train(work, name, config, data, **changes):
    """One training: a configuration with other keys, written as TOML."""

    def do(place):
        file = work.root / "configs" / f"{name.replace('/', '-')}.toml"
        file.parent.mkdir(exist_ok=True)
        lines = [f"extends = {json.dumps(os.path.relpath(config, file.parent))}"]
        lines += [f"{key} = {json.dumps(str(value))}" for key, value in changes.items()]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scseg(work.log(name.replace("/", "-")), "train", file, "--data", data, "--out", place)

    return work.once(name, do)


def stages(work):
    """The trainings without real scans, each from the one before; the last one's folder."""
    data, before = work.root / "prepared", None
    shown = work.root / "phantoms"
    for part in ("demo", "phantoms", "more"):
        work.once(
            f"phantoms/{part}",
            lambda place, part=part: shutil.copytree(data / part, place, copy_function=os.link),
        )
    for stage in PHANTOM_STAGES:
        changes = {} if before is None else {"initial": before}
        before = train(work, f"stages/{stage}", CONFIGS / f"{stage}.toml", shown, **changes)
    return before


def last_stage(work, start, data):
    """The models of folds and the one of all subjects, ``--jobs`` at a time: folders by fold."""
    folds = json.loads((CONFIGS / "folds.json").read_text(encoding="utf-8"))
    known = sorted({record["subject"] for record in cases(data)})
    aside = [name for name in known if len(name) == len("0000") and name.isdigit()][-ASIDE:]
    (work.root / "configs").mkdir(exist_ok=True)

    def one(fold):
        split = work.root / "configs" / f"split-{fold}.json"
        held = [name for name in folds.get(fold, ()) if name in known]
        split.write_text(json.dumps({"validation": [*held, *aside]}), encoding="utf-8")
        config = CONFIGS / "4-real.toml"
        return train(work, f"folds/{fold}", config, data, initial=start, **{"validation.split": split})

    names = [ALL, *folds]
    with ThreadPoolExecutor(work.jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True)), folds


def judge(work, models, folds):
    """Test lesions in real cords, each judged by the model that never saw its person."""

    def test(place):
        script = ROOT / "benchmarks" / "independent_implants.py"
        run(work.log("test"), sys.executable, script, work.real, place)

    prepared = work.prepared("test", test, "--no-registration", "--jitter", "0.4")
    listed = work.root / "folds.json"
    entries = {
        fold: {"model": str(models[fold] / "bundle"), "subjects": people} for fold, people in folds.items()
    }
    listed.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    out = work.root / "judged"
    out.mkdir(exist_ok=True)
    run(work.log("judge"), sys.executable, ROOT / "benchmarks" / "implant_folds.py", prepared, listed, out)
    print(work.log("judge").read_text(encoding="utf-8"))
    bundles = " ".join(str(models[name] / "bundle") for name in (ALL, *folds))
    print(
        f"python benchmarks/finish_lesion.py MODEL {bundles} --card CARD.md --scale A --shift B --threshold T"
    )


def cases(folder):
    """Records of the prepared cases below a folder."""
    for file in sorted(folder.rglob("case.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--until", choices=("data", "phantoms", "real", "judge"), default="judge")
    args = parser.parse_args()
    work = Work(args.work, real=args.real, jobs=args.jobs)
    phantoms(work)
    mixed = implants(work)
    if args.until == "data":
        return
    start = stages(work)
    if args.until == "phantoms":
        return
    models, folds = last_stage(work, start, mixed)
    if args.until == "judge":
        judge(work, models, folds)


if __name__ == "__main__":
    main()
