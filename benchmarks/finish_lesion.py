"""The packaged lesion model from trainings of one recipe: their weights averaged, its probability calibrated.

Usage:
    python benchmarks/finish_lesion.py OUT BUNDLE [BUNDLE …] --card CARD.md
        [--scale A] [--shift B] [--threshold T] [--seed-threshold S] [--seed-threshold-alone S]
        [--min-volume MM3] [--flips] [--dtype float32]

The bundles come from one first stage and one configuration and differ in the subjects that they saw, so the
mean of their weights is a network as well; one that is named several times counts so often. ``--scale`` and
``--shift`` are those of ``implant_folds.py``: the log-odds of a lesion become A times theirs plus B, by the
weights and the bias of the last layer. Thresholds are those after it. ``--dtype float32`` stores
weights twice as large, to see what float16 costs. Recipe, data and provenance are the
first bundle's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_scseg.inference.bundle import load_bundle, load_weights, save_bundle

HEAD = "decoder.heads.0"


def averaged(bundles):
    """Mean of the weights."""
    every = [load_weights(bundle) for bundle in bundles]
    return {name: np.mean([weights[name] for weights in every], axis=0) for name in every[0]}


def calibrated(weights, *, scale, shift):
    """The weights with another last layer, whose second class is the lesion."""
    bias = weights[f"{HEAD}.bias"] * scale
    bias[1] += shift
    return {**weights, f"{HEAD}.weight": weights[f"{HEAD}.weight"] * scale, f"{HEAD}.bias": bias}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--shift", type=float, default=0.0)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--seed-threshold", type=float)
    parser.add_argument("--seed-threshold-alone", type=float)
    parser.add_argument("--min-volume", type=float)
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--license", default="CC0-1.0")
    args = parser.parse_args()
    bundles = [load_bundle(name) for name in args.bundles]
    first = bundles[0]
    rules = first.recipe.inference
    threshold = first.threshold if args.threshold is None else args.threshold
    smallest = rules.min_volume_mm3 if args.min_volume is None else args.min_volume
    seed = rules.seed_threshold if args.seed_threshold is None else args.seed_threshold
    alone = rules.seed_threshold_alone if args.seed_threshold_alone is None else args.seed_threshold_alone
    inference = replace(
        rules,
        threshold=threshold,
        min_volume_mm3=smallest,
        seed_threshold=seed,
        seed_threshold_alone=alone,
        flips=args.flips,
    )
    provenance = {
        **dict(first.provenance),
        "averaged": ", ".join(f"{bundle.weights_sha256[:16]}" for bundle in bundles),
        "calibration": f"log-odds times {args.scale:g}, plus {args.shift:g}",
    }
    save_bundle(
        args.out,
        calibrated(averaged(bundles), scale=args.scale, shift=args.shift),
        recipe=replace(first.recipe, inference=inference),
        network=first.network,
        threshold=threshold,
        provenance=provenance,
        card=args.card.read_text(encoding="utf-8"),
        dtype=args.dtype,
        facts=replace(
            first.facts,
            license=args.license,
            metrics={},  # those of the first bundle are not those of the mean
            calibration={
                "set": "lesions painted into real cords, models of folds (benchmarks/implant_folds.py)",
                "rule": "scale and shift of the log-odds by logistic regression; threshold as the card says",
            },
        ),
    )


if __name__ == "__main__":
    main()
