"""Whether more sequences find more: one, two and all sequences of the same synthetic subjects.

Usage:
    scseg synth TEST.toml PHANTOMS      # a seed that no training took; all six sequences of each subject
    scseg prepare PHANTOMS PREPARED --labels derivatives/labels --no-registration --jitter 0.4
    python benchmarks/complementary.py PREPARED [--model cord-lesion] [--alone T2Sag] [--with STIR T2StarAx …]

Every case is predicted from ``--alone``, from it with each of ``--with``, and from all its sequences, and
scored by the rules ``walsh2024`` at the bundle's threshold against the same truth each time: the lesions that
any of its sequences shows at least faintly. Differences from ``--alone`` are paired by case; intervals
are bootstrap intervals over subjects.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from lesion_model import LesionModel

from bids_scseg.measure.overlap import overlap_table
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.measure.statistics import bootstrap_mean
from bids_scseg.training.sample import IGNORE

PROFILE = PROFILES["walsh2024"]


def truth_of(case):
    """Instances that any of the case's sequences shows, numbered from 1; what none shows does not count."""
    label = np.asarray(case.label).astype(np.int32)
    shown = set(case.visible) | set(case.faint)
    shown = {n for n in shown if case.visible.get(n) or case.faint.get(n)}
    numbers = sorted(n for n in np.unique(label) if n and n != IGNORE and n in shown)
    dense = np.zeros(IGNORE + 1, np.int32)
    dense[numbers] = np.arange(1, len(numbers) + 1)
    ignored = (label != 0) & (dense[label] == 0)
    return dense[label], ignored


def score(case, model, names):
    """(F1, Dice, found, lesions, right, predicted) of a case from some sequences; NaN without lesions."""
    kept = np.array([name in names for name in case.sequences]) & case.available
    prob = model.probability(case, kept=kept)
    truth, ignored = truth_of(case)
    predicted = model.label(np.where(ignored, np.float32(0), prob), case, kept=kept)
    found, right = PROFILE.match(overlap_table(truth, predicted))
    counts = int(found.sum()), found.size, int(right.sum()), right.size
    if not found.size:
        return (np.nan, np.nan, *counts)
    f1 = 2 * counts[0] * counts[2] / max(counts[0] * counts[3] + counts[2] * counts[1], 1)
    both = (truth > 0) & (predicted > 0)
    return (f1, 2 * both.sum() / ((truth > 0).sum() + (predicted > 0).sum()), *counts)


def text(values, groups):
    """Mean and interval of what is known."""
    known = [(v, g) for v, g in zip(values, groups, strict=True) if not np.isnan(v)]
    found = bootstrap_mean([v for v, _ in known], groups=[g for _, g in known])
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--model", default="cord-lesion")
    parser.add_argument("--alone", default="T2Sag")
    parser.add_argument("--with", dest="others", nargs="+", default=["STIR", "T2StarAx"])
    args = parser.parse_args()
    model = LesionModel(args.model)
    every = model.sequences
    sets = {args.alone: (args.alone,), **{f"{args.alone}+{o}": (args.alone, o) for o in args.others}}
    sets["all"] = every
    cases = list(model.cases(args.prepared))
    groups = [case.subject for case in cases]
    rows = {}
    for name, names in sets.items():
        rows[name] = np.array([score(case, model, names) for case in cases], float)
        found, lesions, right, predicted = rows[name][:, 2:].sum(axis=0)
        print(
            f"{name}: sensitivity {found / lesions:.3f}, precision {right / max(predicted, 1):.3f}, "
            f"F1 {text(rows[name][:, 0], groups)}, Dice {text(rows[name][:, 1], groups)}",
            flush=True,
        )
    alone = rows[args.alone]
    result = {
        name: {
            key: text(rows[name][:, column] - alone[:, column], groups)
            for key, column in (("F1", 0), ("Dice", 1))
        }
        for name in sets
        if name != args.alone
    }
    print(json.dumps({f"less {args.alone} alone, {len(cases)} sessions": result}, indent=1))


if __name__ == "__main__":
    main()
