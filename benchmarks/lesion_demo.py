"""The lesion model on synthetic subjects that training never saw.

Usage:
    scseg demo DEMO --subjects 20 --seed 4242
    python benchmarks/lesion_demo.py DEMO WORK [--model cord-lesion] [--cord cord-finder]

Every session is prepared as in the pipeline (slabs registered) and predicted by the pipeline's own code.
Cords come from the dataset's truth with a finder's errors added, or from ``--cord MODEL``, as the app takes
them; WORK holds cases of one kind of cords. Scored in prepared space by the rules ``walsh2024`` at the
bundle's threshold; ``visible`` lesions have a contrast-to-noise ratio of at least 2 in at least one sequence
of the session.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
from lesion_model import LesionModel

from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.preprocess import cordmask
from bids_scseg.training.cases import LESIONS_FILE
from bids_scseg.training.session import load_finder, prepare_case
from bids_scseg.training.validate import Scores

SEED = 1  # of the added centerline errors


def check_cords(args):
    """Refuse a folder whose cases have other cords: they would be taken as they are."""
    said = "of the truth, with errors"
    if args.cord:
        bundle, rules = load_bundle(args.cord), Path(cordmask.__file__).read_bytes()
        said = f"by {bundle.inference_sha256[:12]}, rules {hashlib.sha256(rules).hexdigest()[:12]}"
    known = args.work / "cords.txt"
    if args.work.exists() and any(args.work.iterdir()):
        found = known.read_text() if known.exists() else "nobody knows of whom"
        if found != said:
            raise SystemExit(f"{args.work}: its cases have cords {found}, not {said}; give another folder")
    args.work.mkdir(parents=True, exist_ok=True)
    known.write_text(said)


def prepared(args, bundle):
    """Folders of all sessions, prepared where that has not been done."""
    labels = args.dataset / "derivatives" / "labels"
    for study in find_studies(args.dataset):
        plan = make_plan(study, bundle.recipe, derivatives=(labels,))
        out = args.work / plan.label
        if not (out / LESIONS_FILE).exists():
            prepare_case(
                plan,
                bundle.recipe,
                labels=labels,
                out=out,
                rng=np.random.default_rng([SEED, *plan.label.encode()]),
                register=True,
                jitter_mm=0.0 if args.cord else 0.4,
                cord=load_finder(args.cord, 0) if args.cord else None,
            )
        yield out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="cord-lesion")
    parser.add_argument("--cord")
    args = parser.parse_args()
    check_cords(args)
    model = LesionModel(args.model)
    rows = []
    for folder in prepared(args, model.bundle):
        case = model.case(folder)
        started = time.process_time()
        prob = model.probability(case)
        seconds = time.process_time() - started
        score = model.score(prob, case)
        rows.append(score)
        present = [name for name, there in zip(case.sequences, case.available, strict=True) if there]
        print(
            f"{folder.name:14s} visible {score.visible_found}/{score.visible}"
            f"  all {score.found}/{score.lesions}"
            f"  right {score.right}/{score.predicted} Dice {score.dice:.3f}  {seconds:5.1f} CPU s"
            f"  {','.join(present)}",
            flush=True,
        )
    total = Scores(
        threshold=model.threshold,
        min_volume_mm3=model.min_volume_mm3,
        seed_threshold=model.seed_threshold,
        cases=tuple(rows),
    )
    print(json.dumps(total.to_json()))


if __name__ == "__main__":
    main()
