"""The packaged lesion model from nothing: data, stages, models of folds.

Usage:
    python benchmarks/train_lesion.py WORK --real REAL [--jobs 2] [--until data|phantoms|real|judge] [--all]

REAL is a BIDS dataset of cords without lesions, with cord masks under ``derivatives/labels``. For training,
not for judging, images without one get that of the packaged finder. Everything goes into WORK; what is
finished there is not done again, and a training that was stopped goes on from its last checkpoint.
``configs/cord-lesion/`` has the stages; ``folds.json`` there says which of REAL's subjects each model of a
fold does not see, ``exclude.json`` who takes part in nothing, and why. With ``--all`` a model of all other
subjects is trained too. The last step judges the models of folds on two sets of test lesions: those of
``independent_implants.py`` by ``implant_folds.py``, with the contrast that these came out with, and those of
``configs/implant-test.toml``, faint ones among them, by ``implants.py``. It prints the command that makes the
bundle of the mean of the weights (``finish_lesion.py``). Each training takes one core, the first three stages
two, one after another.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.nifti import read_image
from bids_scseg.training.session import load_finder

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "cord-lesion"
PHANTOM_STAGES = ("1-phantoms", "2-more-phantoms", "3-grey-matter")
DEMO_SUBJECTS, DEMO_SEED = 60, 9001
MIXED = 60  # computed subjects of the training generator beside the real ones in the last stage
ALL = "all"  # the model that sees every subject
ASIDE = 6  # computed subjects that no stage is trained on, held out in the last one
#: For glibc, which else gives memory back after each iteration and takes it anew.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def run(log, *command, threads=1):
    """A command with its output in a file; ends the script with the file's name if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        env = {**KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": str(threads)}
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


def cords(work):
    """REAL's images, those without a cord mask with that of the packaged finder."""

    def find(place):
        shutil.copytree(work.real, place, ignore=shutil.ignore_patterns("sourcedata"), dirs_exist_ok=True)
        labels, finder = place / "derivatives" / "labels", load_finder("cord-finder", work.jobs)
        for study in find_studies(place):
            plan = make_plan(study, load_recipe("cord-lesion"), derivatives=(labels,))
            known = dict(plan.cord_masks)
            for name in (file.relative for part in plan.sequences for file in part.files):
                if name not in known:
                    mask = labels / f"{name.removesuffix('.nii.gz')}_label-SC_seg.nii.gz"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    values, grid = read_image(place / name)
                    cord = (finder(values, grid) >= 0.5).astype(np.uint8)
                    nib.save(nib.Nifti1Image(cord, grid.affine), mask)
                    print(f"{name}: {int(cord.sum())} voxels of cord by the packaged finder", flush=True)

    return work.once("cords", find)


def implants(work):
    """Real cords with lesions for training, beside some of the computed sessions."""

    def implant(place):
        config = ROOT / "configs" / "implant-train.toml"
        scseg(work.log("implant"), "implant", cords(work), place, "--config", config, *left_out())

    def mix(place):
        more = work.root / "prepared" / "more"
        computed = sorted(more.glob("sub-*"))[:MIXED]
        computed += [path for name in held for path in sorted(more.glob(f"sub-{name}*"))]
        for source in (real, work.root / "prepared" / "demo", *computed):
            shutil.copytree(source, place / source.name, copy_function=os.link, dirs_exist_ok=True)

    real = work.prepared("real", implant, "--no-registration", "--jitter", "0.4")
    held = aside(work)
    return work.once("mix", mix)


def excluded():
    """People of REAL that take part in nothing."""
    return sorted(json.loads((CONFIGS / "exclude.json").read_text(encoding="utf-8")))


def left_out():
    """The option that leaves them out, as ``scseg implant`` and ``independent_implants.py`` have it."""
    return ["--exclude-participant-label", *excluded()]


def aside(work):
    """Computed subjects that no stage is trained on: the last of the larger set."""
    return sorted({record["subject"] for record in cases(work.root / "prepared" / "more")})[-ASIDE:]


def check_people(work, mixed):
    """End where somebody is in the data who must not be: WORK was begun otherwise."""
    strangers = {record["subject"] for record in cases(mixed)} & set(excluded())
    seen = {record["subject"] for record in cases(work.root / "phantoms")} & set(aside(work))
    if strangers:
        sys.exit(f"{mixed} has {sorted(strangers)}, which exclude.json leaves out: begin in a new folder")
    if seen:
        sys.exit(f"{work.root / 'phantoms'} has {sorted(seen)}, who are held out: begin in a new folder")


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


def stages(work, mixed):
    """The trainings without real scans, each from the one before; the last one's folder."""
    data, before = work.root / "prepared", None
    shown, held = work.root / "phantoms", shutil.ignore_patterns(*(f"sub-{name}*" for name in aside(work)))
    for part in ("demo", "phantoms", "more"):
        work.once(
            f"phantoms/{part}",
            lambda place, part=part: shutil.copytree(
                data / part, place, copy_function=os.link, ignore=held if part == "more" else None
            ),
        )
    check_people(work, mixed)
    for stage in PHANTOM_STAGES:
        changes = {} if before is None else {"initial": before}
        before = train(work, f"stages/{stage}", CONFIGS / f"{stage}.toml", shown, **changes)
    return before


def read_folds():
    """The people whom the model of each fold does not see."""
    folds = json.loads((CONFIGS / "folds.json").read_text(encoding="utf-8"))
    return {fold: [name for name in people if name not in excluded()] for fold, people in folds.items()}


def last_stage(work, start, data, *, with_all=False):
    """The models of folds, and one of all subjects if wanted, ``--jobs`` at a time: folders by fold."""
    folds, known = read_folds(), {record["subject"] for record in cases(data)}
    (work.root / "configs").mkdir(exist_ok=True)

    def one(fold):
        split = work.root / "configs" / f"split-{fold}.json"
        held = [name for name in folds.get(fold, ()) if name in known]
        split.write_text(json.dumps({"test": held, "validation": aside(work)}), encoding="utf-8")
        config = CONFIGS / "4-real.toml"
        return train(work, f"folds/{fold}", config, data, initial=start, **{"validation.split": split})

    names = [*([ALL] if with_all else []), *folds]
    with ThreadPoolExecutor(work.jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True)), folds


def judge(work, models, folds):
    """Test lesions in real cords, each judged by the model that never saw its person."""

    def test(place):
        script = ROOT / "benchmarks" / "independent_implants.py"
        run(work.log("test"), sys.executable, script, work.real, place, *left_out())

    prepared = work.prepared("test", test, "--no-registration", "--jitter", "0.4")
    listed = work.root / "folds.json"
    entries = {
        fold: {"model": str(models[fold] / "bundle"), "subjects": people} for fold, people in folds.items()
    }
    listed.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    out = work.root / "judged"
    out.mkdir(exist_ok=True)
    script = ROOT / "benchmarks" / "implant_folds.py"
    run(work.log("judge"), sys.executable, script, prepared, listed, out, "--jobs", work.jobs)
    print(work.log("judge").read_text(encoding="utf-8"))
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    contrast = ROOT / "benchmarks" / "realised_contrast.py"
    run(work.log("contrast"), sys.executable, contrast, work.root / "bids" / "test")
    print(work.log("contrast").read_text(encoding="utf-8"))
    judge_field(work, models, folds, point=figures["of all folds"])
    print("\n".join(finishing(models, figures)))


def judge_field(work, models, folds, *, point):
    """The same models at one operating point on lesions that are drawn otherwise, faint ones among them."""

    def field(place):
        config = ROOT / "configs" / "implant-test.toml"
        scseg(work.log("field"), "implant", work.real, place, "--config", config, *left_out())

    prepared, log = work.prepared("field", field, "--jitter", "0.4"), work.log("judge-field")
    each = [part for f, people in folds.items() for part in ("--fold", models[f] / "bundle", *people)]
    options = ("--threshold", point[0], "--min-volume", point[1], "--seed-threshold", point[2])
    script, out = ROOT / "benchmarks" / "implants.py", work.root / "judged-field"
    run(log, sys.executable, script, prepared, out, *each, *options, threads=work.jobs)
    print(log.read_text(encoding="utf-8"))


def finishing(models, figures):
    """Lines: the command that makes the bundle, and where its numbers come from."""
    threshold, smallest, seed = figures["of all folds"]
    scale, shift = figures["scale and shift"]["of all folds"]

    def moved(probability):
        odds = math.log(probability / (1 - probability))
        return 1 / (1 + math.exp(-(scale * odds + shift)))

    options = f"--threshold {moved(threshold):.5g} --min-volume {smallest:g}"
    options += f" --seed-threshold 0 --seed-threshold-alone {moved(seed) if seed else 0:.5g}"
    bundles = " ".join(str(folder / "bundle") for folder in models.values())
    yield "Scale, shift, thresholds and least volume are those of all folds in judged/figures.json, which"
    yield f"implant_folds.py wrote; its thresholds of {threshold:g} and {seed:g} are moved likewise."
    yield "Images were judged one by one: the seed threshold is that where one sequence alone covers."
    yield "Choose the other on sessions of several sequences, by lesion_demo.py for instance."
    yield (
        f"python benchmarks/finish_lesion.py MODEL {bundles} --card CARD.md "
        f"--scale {scale:.5f} --shift {shift:.5f} {options}"
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
    parser.add_argument("--all", action="store_true", help="train a model of all subjects, for the mean, too")
    args = parser.parse_args()
    work = Work(args.work, real=args.real, jobs=args.jobs)
    phantoms(work)
    mixed = implants(work)
    if args.until == "data":
        return
    start = stages(work, mixed)
    if args.until == "phantoms":
        return
    models, folds = last_stage(work, start, mixed, with_all=args.all)
    if args.until == "judge":
        judge(work, models, folds)


if __name__ == "__main__":
    main()
