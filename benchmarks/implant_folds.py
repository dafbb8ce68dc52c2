"""Models of subject-grouped folds on test lesions in real cords that they never saw.

Usage:
    python benchmarks/implant_folds.py PREPARED FOLDS.json OUT [--jobs 2] [--point T MM3 SEED]

PREPARED holds cases made by ``scseg prepare`` from the test implants; FOLDS.json says which model judges
which subjects: ``{"a": {"model": DIR, "subjects": [...]}, ...}``. A session without lesions counts for
false lesions only. Threshold, smallest volume and seed threshold of a fold are those with the best F1 (two
digits, then Dice) on the *other* folds' subjects, so that no fold's own cases choose anything; scale and
shift of the log-odds that calibrate a fold's probabilities likewise. With ``--point`` the
figures of all folds at that threshold, smallest volume and seed threshold come as well; nothing says who
chose it. Rules ``walsh2024``; intervals are bootstrapped over subjects.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import statsmodels.api as sm
from lesion_model import LesionModel

from bids_scseg.measure.calibration import CERTAIN_BELOW, add, calibrate, calibration_sums
from bids_scseg.measure.statistics import bootstrap_f1, bootstrap_mean, bootstrap_ratio
from bids_scseg.training.sample import IGNORE
from bids_scseg.training.validate import Scores

THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
VOLUMES_MM3 = (10.0, 15.0, 20.0)
SEEDS = (0.0, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
POINTS = [(t, v, s) for t, v, s in product(THRESHOLDS, VOLUMES_MM3, SEEDS) if s == 0 or s > t]
LARGE_MM3 = 150.0
ROUNDING = 1e-4  # probabilities nearer to 0 or 1 hardly differ, and few voxels would decide
ODDS = np.linspace(-9.5, 9.5, 96)  # edges of the bins of log-odds


def probability(case, model, file):
    """The model's map of a case, kept in a file."""
    if not file.exists():
        np.save(file, model.probability(case))
    return np.load(file, allow_pickle=False)


def collect(prepared, folds, out, *, jobs, points):
    """One record per case of all folds, some of them at once."""
    one = partial(fold_records, prepared, out, points)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(one, folds.items()) for row in rows]


def fold_records(prepared, out, candidates, entry):
    """One record per case: fold, subject, sequences, lesion sizes, scores at every operating point."""
    fold, wanted = entry
    model, rows = LesionModel(wanted["model"]), []
    for case in model.cases(prepared):
        if case.subject in wanted["subjects"]:
            prob = probability(case, model, out / f"{case.folder.name}.npy")
            rows.append(record(fold, case, prob, model, candidates))
            print(fold, case.folder.name, flush=True)
    return rows


def record(fold, case, prob, model, candidates):
    """Scores of a case at every operating point, and its calibration."""
    known = np.asarray(case.label) != IGNORE
    present = [name for name, there in zip(case.sequences, case.available, strict=True) if there]
    points = dict(zip(candidates, model.scores(prob, case, candidates), strict=True))
    large = dict(zip(candidates, large_found(case, prob, model, candidates), strict=True))
    inside = known & case.covered(case.available)
    return {
        "odds": odds(prob[inside], case.label[inside] > 0),
        "inside": inside,
        "prob": prob,
        "label": np.where(known, case.label, 0) > 0,
        "fold": fold,
        "subject": case.subject,
        "sequence": "+".join(present),
        "points": points,
        "large": large,
        "calibration": calibration_sums(np.where(known, case.label, 0), np.clip(prob, 0, 1), inside=inside),
    }


def log_odds(prob):
    """Of probabilities, within `ROUNDING` of 0 and 1."""
    prob = np.clip(prob, ROUNDING, 1 - ROUNDING)
    return np.log(prob / (1 - prob))


def odds(prob, lesion):
    """(bins, 2) counts of background and lesion by log-odds, without sure background."""
    some = prob >= CERTAIN_BELOW
    return np.stack([np.histogram(log_odds(prob[some & (lesion == one)]), ODDS)[0] for one in (0, 1)], axis=1)


def platt(rows):
    """Scale and shift of log-odds that fit the rows' voxels best (logistic regression)."""
    counts = np.sum([row["odds"] for row in rows], axis=0)
    middle, some = (ODDS[1:] + ODDS[:-1]) / 2, counts.sum(axis=1) > 0
    fit = sm.GLM(counts[some, ::-1], sm.add_constant(middle[some]), family=sm.families.Binomial()).fit()
    return float(fit.params[1]), float(fit.params[0])


def calibrated_error(rows, fits):
    """Expected calibration error after each fold's scale and shift."""
    sums = []
    for row in rows:
        scale, shift = fits[row["fold"]]
        prob = 1 / (1 + np.exp(-(scale * log_odds(row["prob"]) + shift)))
        prob = np.where(row["prob"] >= CERTAIN_BELOW, np.maximum(prob, CERTAIN_BELOW), 0)
        sums.append(calibration_sums(row["label"], prob.astype(np.float32), inside=row["inside"]))
    return round(calibrate(add(sums)).expected_error, 4)


def large_found(case, prob, model, points):
    """Found, and all, of the lesions over `LARGE_MM3`, at every operating point."""
    voxels = case.lesion_voxels * model.grid.spacing_mm**3
    small = np.isin(case.label, np.flatnonzero(voxels <= LARGE_MM3)) & (np.asarray(case.label) != IGNORE)
    only = replace(case, label=np.where(small, 0, case.label).astype(np.uint8), folder=None)
    return [(score.found, score.lesions) for score in model.scores(prob, only, points)]


def best_point(rows):
    """The point with the best F1 over rows, then Dice.

    F1 counts in steps of 0.01: the noise of some hundred lesions is larger.
    """
    totals = {
        point: Scores(
            threshold=point[0],
            min_volume_mm3=point[1],
            seed_threshold=point[2],
            cases=tuple(row["points"][point] for row in rows),
        )
        for point in POINTS
    }
    return max(totals, key=lambda point: (round(totals[point].f1, 2), np.nan_to_num(totals[point].dice)))


def by_subject(rows, chosen, pick):
    """Sums of a count over each subject's cases."""
    subjects = sorted({row["subject"] for row in rows})
    return [sum(pick(row, chosen[row["fold"]]) for row in rows if row["subject"] == s) for s in subjects]


def summary(rows, chosen, fits):
    """Figures of some cases, each at its fold's operating point."""

    def count(name):
        return by_subject(rows, chosen, lambda row, point: getattr(row["points"][point], name))

    def large(index):
        return by_subject(rows, chosen, lambda row, point: row["large"][point][index])

    drawn = [row for row in rows if row["points"][chosen[row["fold"]]].lesions]
    dice = [row["points"][chosen[row["fold"]]].dice for row in drawn]
    scores = [row["points"][chosen[row["fold"]]] for row in rows]
    empty = [score.predicted for score in scores if not score.lesions]
    found, true, right, predicted = (count(name) for name in ("found", "lesions", "right", "predicted"))
    f1 = bootstrap_f1(found, true, right, predicted)
    return {
        "volumes with lesions": len(drawn),
        "lesions": sum(true),
        "F1": show(f1),
        "sensitivity": show(bootstrap_ratio(found, true)),
        "precision": show(bootstrap_ratio(right, predicted)),
        "Dice": show(bootstrap_mean(dice, groups=[row["subject"] for row in drawn])),
        f"sensitivity over {LARGE_MM3:g} mm3": show(bootstrap_ratio(large(0), large(1))),
        "untouched images": len(empty),
        "false lesions per untouched image": round(float(np.mean(empty)), 3) if empty else None,
        "untouched images with any": sum(number > 0 for number in empty),
        "expected calibration error": round(
            calibrate(add([row["calibration"] for row in rows])).expected_error, 4
        ),
        "the same, calibrated on the other folds": calibrated_error(rows, fits),
    }


def show(interval):
    """Mean and limits as text."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path)
    parser.add_argument("folds", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--point", nargs=3, type=float, metavar=("T", "MM3", "SEED"))
    args = parser.parse_args()
    given = tuple(args.point or ())
    args.out.mkdir(parents=True, exist_ok=True)
    folds = json.loads(args.folds.read_text(encoding="utf-8"))
    points = [*POINTS, *([given] if given and given not in POINTS else [])]
    rows = collect(args.prepared, folds, args.out, jobs=args.jobs, points=points)
    chosen = {fold: best_point([row for row in rows if row["fold"] != fold] or rows) for fold in folds}
    result = {"operating points": {fold: list(point) for fold, point in chosen.items()}}
    result["of all folds"] = list(best_point(rows))
    fits = {fold: platt([row for row in rows if row["fold"] != fold] or rows) for fold in folds}
    result["scale and shift"] = {**fits, "of all folds": platt(rows)}
    for sequence in sorted({row["sequence"] for row in rows}):
        some = [row for row in rows if row["sequence"] == sequence]
        result[sequence] = summary(some, chosen, fits)
        if given:
            result[f"{sequence} at {args.point}"] = summary(some, dict.fromkeys(folds, given), fits)
    (args.out / "figures.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
