"""Scan and rescan of the same cords with the same lesions implanted: cord area, and volume of what is found.

Usage:
    scseg implant BIDS IMPLANTS --config configs/implant-test.toml    # repeats get the session's lesions
    scseg prepare IMPLANTS ONE --labels derivatives/labels --cord builtin --bids-filter-file RUN1.json
    scseg prepare IMPLANTS TWO --labels derivatives/labels --cord builtin --bids-filter-file RUN2.json
    python benchmarks/rescan.py ONE TWO --model BUNDLE | --fold BUNDLE SUBJECT … [--fold …]
        [--threshold T] [--seed-threshold S] [--min-volume MM3]

``RUN1.json`` is ``{"T2StarAx": {"suffix": "T2starw", "run": 1}}``, and so on. Cases of the same name are
pairs. Cord area is the mean over the covered slices of the area of the mask that was found in each scan; the
lesion volume that of all that is found where the truth is (predicted lesions that touch a true one). Relative
differences: absolute difference over the mean of the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lesion_model import LesionModel

from bids_scseg.training.sample import IGNORE


def found_volume(case, model):
    """mm³ of the predicted lesions that touch a true one, and of the true ones."""
    edge = model.grid.spacing_mm
    predicted = model.label(model.probability(case), case)
    truth = (case.label > 0) & (case.label != IGNORE)
    touching = np.setdiff1d(np.unique(predicted[truth]), [0])
    return float(np.isin(predicted, touching).sum() * edge**3), float(truth.sum() * edge**3)


def area_profile(case, *, edge_mm):
    """Cord area mm² of each slice that data cover, by height in mm; what is not covered is left out."""
    covered = np.asarray(case.coverage).any(axis=(0, 1, 2))
    area = np.asarray(case.cord, np.float32).sum(axis=(0, 1)) * edge_mm**2
    return float(area[covered & (area > 0)].mean())


def relative(one, two):
    """Absolute difference over the mean."""
    return abs(one - two) / ((one + two) / 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--fold", nargs="+", action="append", default=[], metavar="BUNDLE SUBJECT")
    parser.add_argument("--threshold", type=float, help="default: the bundle's")
    parser.add_argument("--min-volume", type=float, help="mm³; default: the bundle's")
    parser.add_argument("--seed-threshold", type=float, help="default: the bundle's")
    args = parser.parse_args()
    point = {
        "threshold": args.threshold,
        "min_volume_mm3": args.min_volume,
        "seed_threshold": args.seed_threshold,
    }
    models = {subject: path for path, *subjects in args.fold for subject in subjects}
    loaded, areas, volumes = {}, {}, []
    for folder in sorted(path.parent for path in args.one.rglob("case.json")):
        other = args.two / folder.relative_to(args.one)
        if not (other / "case.json").is_file():
            continue
        name = models.get(folder.name.split("_")[0].removeprefix("sub-"), args.model)
        if name is None:
            continue
        if name not in loaded:
            loaded[name] = LesionModel(name, **point)
        model = loaded[name]
        pair = [model.case(path) for path in (folder, other)]
        edge = model.grid.spacing_mm
        # cords are those of the scans, not of the implants: copies of a session have the same
        scan = folder.name.rsplit("i", 1)[0]
        areas.setdefault(scan, relative(*(area_profile(case, edge_mm=edge) for case in pair)))
        (one, true), (two, _) = (found_volume(case, model) for case in pair)
        if true and one + two:
            volumes.append(relative(one, two))
        print(f"{folder.name}: true {true:.0f}, found {one:.0f} and {two:.0f} mm³", flush=True)
    print(f"cord area, {len(areas)} pairs: {100 * np.mean(list(areas.values())):.1f} % apart in the mean, "
          f"{100 * max(areas.values()):.1f} % at most")  # fmt: skip
    print(f"lesion volume, {len(volumes)} pairs: {100 * np.mean(volumes):.1f} % apart in the mean, "
          f"{100 * np.median(volumes):.1f} % in the median, {100 * max(volumes):.1f} % at most")  # fmt: skip


if __name__ == "__main__":
    main()
