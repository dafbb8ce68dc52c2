"""Lesions implanted in real cords: what a model finds of them, and what it finds where there is nothing.

Usage:
    scseg implant BIDS IMPLANTS --config configs/implant-test.toml
    scseg prepare IMPLANTS PREPARED --labels derivatives/labels --jitter 0.4
    python benchmarks/implants.py PREPARED OUT --model BUNDLE
    python benchmarks/implants.py PREPARED OUT --fold BUNDLE SUBJECT ... [--fold BUNDLE SUBJECT ...]

Every prepared case is predicted from each of its sequences alone and from all together, and scored in
prepared space by the rules ``walsh2024``. A lesion counts where the sequences given show it at least faintly
(measured contrast-to-noise 0.7); one that they do not show at all is neither to be found nor wrong to be
found. With ``--fold`` each subject is judged by the model that never saw it; subjects of no fold are left
out.

Writes OUT/implants.csv (a row for each image), OUT/lesions.csv (a row for each lesion) and prints the tables
of the documentation; intervals are bootstrap intervals over subjects.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from lesion_model import LesionModel

from bids_scseg.measure.overlap import overlap_table
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.measure.statistics import bootstrap_mean
from bids_scseg.training.cases import kept_sequences, load_case
from bids_scseg.training.sample import IGNORE

PROFILE = PROFILES["walsh2024"]
SIZES = ((0, 50), (50, 150), (150, np.inf))  # mm3


def seen(case, names):
    """For each lesion number: "visible", "faint" or "" by the best of the sequences ``names``."""
    out = {}
    for number in case.lesions:
        known = number in case.visible
        if not known or set(case.visible[number]) & names:
            out[number] = "visible"
        else:
            out[number] = "faint" if set(case.faint.get(number, ())) & names else ""
    return out


def judge(case, kept, prob, model):
    """Row of the image and rows of its lesions."""
    names = {name for name, there in zip(case.sequences, kept, strict=True) if there}
    degrees = seen(case, names)
    label = np.where(case.covered(kept), np.asarray(case.label), IGNORE).astype(int)
    label[np.isin(label, [number for number, degree in degrees.items() if not degree])] = IGNORE
    edge = model.grid.spacing_mm
    predicted = model.label(np.where(label == IGNORE, np.float32(0), prob), case, kept=kept)
    truth = np.where(label == IGNORE, 0, label)
    numbers = [n for n in np.unique(truth) if n]
    dense = np.zeros(IGNORE + 1, np.int32)
    dense[numbers] = np.arange(1, len(numbers) + 1)
    found, right = PROFILE.match(overlap_table(dense[truth], predicted))
    row = image_row(case, names, found, right, truth=truth > 0, predicted=predicted > 0)
    lesions = [
        {
            "case": case.name, "subject": case.subject, "sequences": row["sequences"], "lesion": int(n),
            "seen": degrees[n], "volume_mm3": float((truth == n).sum()) * edge**3, "found": int(hit),
        }
        for n, hit in zip(numbers, found, strict=True)
    ]  # fmt: skip
    return row, lesions


def image_row(case, names, found, right, *, truth, predicted):
    """Counts and scores of one image; F1 and Dice are NaN where there is no lesion."""
    sensitivity = found.mean() if found.size else np.nan
    precision = right.mean() if right.size else 0.0
    total = sensitivity + precision
    f1 = 2 * sensitivity * precision / total if total > 0 else 0.0
    return {
        "case": case.name,
        "subject": case.subject,
        "sequences": "+".join(name for name in case.sequences if name in names),
        "lesions": found.size,
        "found": int(found.sum()),
        "predicted": right.size,
        "false": int((~right).sum()),
        "f1": f1 if found.size else np.nan,
        "dice": 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()) if found.size else np.nan,
    }


def subsets(case):
    """Each sequence alone, and all together where there are several."""
    present = [n for n, there in enumerate(case.available) if there]
    for number in present:
        yield np.arange(len(case.sequences)) == number
    if len(present) > 1:
        yield kept_sequences(case, ())


def interval(values, groups):
    """Mean and its interval as text."""
    known = [(v, g) for v, g in zip(values, groups, strict=True) if not np.isnan(v)]
    if not known:
        return "–"
    found = bootstrap_mean([v for v, _ in known], groups=[g for _, g in known])
    return f"{found.mean:.3f} ({found.low:.3f}–{found.high:.3f})"


def image_table(rows):
    """Lines of the table by sequences."""
    yield "| sequences | with lesions | F1 | Dice | false lesions per image | lesion-free | with any |"
    yield "|---|" + "---|" * 6
    for name in sorted({row["sequences"] for row in rows}):
        own = [row for row in rows if row["sequences"] == name]
        groups = [row["subject"] for row in own]
        free = [row for row in own if not row["lesions"]]
        yield (
            f"| {name} | {len(own) - len(free)} | {interval([r['f1'] for r in own], groups)} | "
            f"{interval([r['dice'] for r in own], groups)} | "
            f"{np.mean([row['false'] for row in own]):.2f} | {len(free)} | "
            f"{sum(row['predicted'] > 0 for row in free)} |"
        )


def lesion_table(lesions):
    """Lines of the table of sensitivity by size, for visible and for faint lesions."""
    yield "| sequences | size, mm³ | visible | found | faint | found |"
    yield "|---|" + "---|" * 5
    for name in sorted({row["sequences"] for row in lesions}):
        for low, high in SIZES:
            cells = []
            for degree in ("visible", "faint"):
                own = [
                    row for row in lesions
                    if row["sequences"] == name and row["seen"] == degree and low <= row["volume_mm3"] < high
                ]  # fmt: skip
                groups = [row["subject"] for row in own]
                cells += [str(len(own)), interval([float(row["found"]) for row in own], groups)]
            yield f"| {name} | {low}–{high:g} | {' | '.join(cells)} |"


def write(path, rows):
    """Rows as CSV."""
    if rows:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="bundle that judges every subject")
    parser.add_argument("--fold", nargs="+", action="append", default=[], metavar="BUNDLE SUBJECT")
    parser.add_argument("--threshold", type=float, help="default: the bundle's")
    parser.add_argument("--min-volume", type=float, help="mm³; default: the bundle's")
    parser.add_argument("--seed-threshold", type=float, help="default: the bundle's")
    args = parser.parse_args()
    if not args.model and not args.fold:
        parser.error("--model or --fold is needed")
    options = {
        "threshold": args.threshold,
        "min_volume_mm3": args.min_volume,
        "seed_threshold": args.seed_threshold,
    }
    every = LesionModel(args.model, **options) if args.model else None
    by_subject = {}
    for path, *subjects in args.fold:
        model = LesionModel(path, **options)
        by_subject |= {subject.removeprefix("sub-"): model for subject in subjects}
    rows, lesions = [], []
    for folder in sorted(path.parent for path in args.prepared.glob("*/case.json")):
        subject = json.loads((folder / "case.json").read_text(encoding="utf-8"))["subject"]
        model = by_subject.get(subject, every)
        if model is None:
            continue
        case = load_case(folder, sequences=model.bundle.recipe.sequence_names)
        for kept in subsets(case):
            row, some = judge(case, kept, model.probability(case, kept=kept), model)
            rows.append(row)
            lesions += some
            print(
                f"{case.name:24s} {row['sequences']:24s} found {row['found']}/{row['lesions']} "
                f"false {row['false']} Dice {row['dice']:.3f}",
                flush=True,
            )
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "implants.csv", rows)
    write(args.out / "lesions.csv", lesions)
    for line in (*image_table(rows), "", *lesion_table(lesions)):
        print(line)


if __name__ == "__main__":
    main()
