r"""The cord finder on real images: subject-grouped folds, trained and tabled.

Usage:
    python benchmarks/cord_folds.py maps MAPS
    python benchmarks/cord_folds.py pretrain MAPS FIRST
    python benchmarks/cord_folds.py pretrain MAPS PRE --config configs/cord-finder-ends.toml \
        --initial FIRST --ends 0.5
    python benchmarks/cord_folds.py train DATASET MAPS PRE FINE
    python benchmarks/cord_folds.py average PRE FINE OUT
    python benchmarks/cord_folds.py table DATASET OUT

``maps`` writes tissue maps of computed subjects, ``pretrain`` trains on them alone, with random contrasts;
``train`` goes on from these weights with real images among the computed ones, one model per fold and one on
all subjects; ``average`` takes the mean of the weights before and after, fold by fold;
``table`` prints, for each image that has a cord mask, the figures of the model that never saw its subject.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_scseg.errors import CordNotFoundError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.inference.predict import find_cord, load_network
from bids_scseg.measure.statistics import bootstrap_mean
from bids_scseg.network.build import build_network
from bids_scseg.preprocess.align import fit_centerline, measure_centers
from bids_scseg.preprocess.cordmask import found_cord, partial_weights
from bids_scseg.preprocess.frames import reference_axes
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.grid import Grid
from bids_scseg.synth.randomize import write_tissue_maps
from bids_scseg.training.checkpoint import load_weights
from bids_scseg.training.config import configured_recipe, load_config
from bids_scseg.training.cord import Mixture, RealCords, TissueMaps, find_maps, load_real_cords, match_image
from bids_scseg.training.fit import Trained, fit
from bids_scseg.training.train import export

PRE, FINE = (Path("configs") / f"cord-finder-{stage}.toml" for stage in ("pretrain", "finetune"))
FOLDS = 4
ENDS = 0.5  # share of synthetic examples round the cord's end while real ones, which have none, are learned
SEED = 0  # of the assignment of subjects to folds


def folds(subjects):
    """Subject → fold."""
    order = np.random.default_rng(SEED).permutation(sorted(set(subjects)))
    return {str(subject): number % FOLDS for number, subject in enumerate(order)}


def draw_maps(args):
    write_tissue_maps(args.maps, count=args.count, seed=args.seed)


def pretrain(args):
    config = load_config(args.config)
    if args.initial:
        config = replace(config, initial=str(args.initial))
    maps = TissueMaps(
        files=find_maps(args.maps), patch_vox=config.sampling.patch_vox, seed=config.seed, ends=args.ends
    )
    trained = fit(config, maps, recipe=load_recipe(config.recipe), out=args.out)
    export(trained, config, out=args.out / "bundle", scores=None, data=maps.summary(), facts={})


def train(args):
    config = load_config(args.config)
    recipe = load_recipe(config.recipe)
    cases = load_real_cords(args.dataset)
    assignment = folds(case.subject for case in cases)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "folds.json").write_text(json.dumps(assignment, indent=1))
    maps = TissueMaps(
        files=find_maps(args.maps), patch_vox=config.sampling.patch_vox, seed=config.seed + 1, ends=ENDS
    )
    for fold in args.only if args.only is not None else [*range(FOLDS), None]:
        own = [case for case in cases if assignment[case.subject] != fold]
        real = RealCords(cases=own, patch_vox=config.sampling.patch_vox, seed=config.seed)
        name = "all" if fold is None or fold < 0 else f"fold{fold}"
        source = Mixture(first=real, second=maps, share=args.share, seed=config.seed)
        started = time.time()
        run = replace(config, name=f"{config.name}-{name}", initial=str(args.pre))
        trained = fit(run, source, recipe=recipe, out=args.out / name)
        export(trained, run, out=args.out / name / "bundle", scores=None, data=source.summary(), facts={})
        print(f"{name}: {len(own)} images, {time.time() - started:.0f} s", flush=True)


def average(args):
    config = load_config(args.config)
    recipe = configured_recipe(config, load_recipe(config.recipe))
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.fine / "folds.json", args.out)
    for name in ["all", *(f"fold{n}" for n in range(FOLDS))]:
        one, two = (build_network(recipe.network, anchors=recipe.anchors) for _ in range(2))
        load_weights(args.pre, one)
        load_weights(args.fine / name, two)
        other = two.state_dict()
        one.load_state_dict({key: (value + other[key]) / 2 for key, value in one.state_dict().items()})
        data = json.loads((args.fine / name / "data.json").read_text())
        trained = Trained(network=one.eval(), recipe=recipe, iterations=config.iterations)
        export(trained, config, out=args.out / name / "bundle", scores=None, data=data, facts=dict(args.fact))


def centres(mask, grid):
    """Slice along S-I → cord centre in mm within the slice's plane axes."""
    axis, _ = grid.canonical_axes()[2]
    planes = np.moveaxis(np.argwhere(mask), 1, 0)
    out = {}
    for k in np.unique(planes[axis]):
        out[int(k)] = grid.to_world(planes[:, planes[axis] == k].mean(axis=1))
    return out


def judge(prob, truth, grid):
    """Dice, mean and worst error of slice centres in mm, slices missed, worst of the fitted line, area."""
    try:
        found = found_cord(prob, grid)
    except CordNotFoundError:  # a result here
        return 0.0, float("nan"), float("nan"), 1.0, float("nan"), float("nan")
    true, own = centres(truth, grid), centres(found, grid)
    errors = [float(np.linalg.norm(true[k] - own[k])) for k in true if k in own]
    missing = sum(k not in own for k in true) / len(true)
    dice = 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
    area = float(found[_within(true, found.shape, grid)].sum()) / float(truth.sum())
    line = line_error(prob, found, true, grid)
    return dice, float(np.mean(errors)), float(np.max(errors)), missing, line, area


def _within(slices, shape, grid):
    """Index of the slices along S-I that hold true cord."""
    axis, _ = grid.canonical_axes()[2]
    kept = np.zeros(shape[axis], bool)
    kept[list(slices)] = True
    return tuple(kept if a == axis else slice(None) for a in range(3))


def line_error(prob, found, true, grid):
    """Worst distance in mm of the truth's slice centres from the smooth centerline that the pipeline fits."""
    axes = reference_axes(grid)
    weights = partial_weights(prob, found)
    s, xy, area = measure_centers(found if weights is None else weights, grid, axes)
    points = np.array(list(true.values())) @ axes
    line = fit_centerline(s, xy, area_mm2=area)
    return float(np.linalg.norm(line.at(points[:, 2]) - points[:, :2], axis=1).max())


def table(args):
    assignment = json.loads((args.out / "folds.json").read_text())
    masks = sorted((args.dataset / "derivatives" / "labels").rglob("*_label-SC_seg.nii.gz"))
    rows, loaded = [], {}
    for mask in masks:
        path = match_image(mask, dataset=args.dataset)
        subject = path.name.split("_")[0]
        fold = args.bundle or f"fold{assignment[subject]}"
        if fold not in loaded:
            bundle = load_bundle(args.bundle or args.out / fold / "bundle")
            loaded[fold] = (bundle, load_network(bundle))
        bundle, network = loaded[fold]
        image = nib.load(path)
        values = np.asarray(image.dataobj, np.float32)
        truth = np.asarray(nib.load(mask).dataobj) > 0.5
        grid = Grid(shape=values.shape, affine=image.affine)
        started = time.process_time()
        prob = find_cord(network, bundle, image=values, affine=image.affine)
        seconds = time.process_time() - started
        dice, mean, worst, missing, line, area = judge(prob, truth, grid)
        name = path.name.removesuffix(".nii.gz")
        rows.append([subject, name, fold, dice, mean, worst, missing, line, area, seconds])
        print(
            f"{rows[-1][1]:42s} {fold:6s} Dice {dice:.3f}  mean {mean:5.2f}  worst {worst:5.2f} mm"
            f"  fitted line {line:5.2f}  slices missed {missing:4.0%}  area {area:4.2f}"
            f"  {seconds:4.1f} CPU s",
            flush=True,
        )
    report(rows, args.out / "table.csv")


def report(rows, path):
    columns = [
        "subject",
        "image",
        "fold",
        "dice",
        "mean_mm",
        "worst_mm",
        "missed",
        "line_worst_mm",
        "area_ratio",
        "cpu_seconds",
    ]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])
    dice, mean, worst = (np.array([row[n] for row in rows]) for n in (3, 4, 5))
    print(
        f"{len(rows)} images: Dice median {np.median(dice):.3f}, worst {dice.min():.3f}; centerline "
        f"mean {np.nanmean(mean):.2f} mm (worst image {np.nanmax(mean):.2f}), "
        f"worst slice {np.nanmax(worst):.2f} mm; "
        f"area found/drawn, median {np.nanmedian([row[8] for row in rows]):.2f}; "
        f"fitted line at worst {np.nanmax([row[7] for row in rows]):.2f} mm; "
        f"lost {int((dice == 0).sum())}"
    )
    subjects = [row[0] for row in rows]
    for what, values in (("Dice", dice), ("distance of centres, mm", mean)):
        known = np.isfinite(values)
        found = bootstrap_mean(values[known], groups=[s for s, k in zip(subjects, known, strict=True) if k])
        print(f"{what}: mean {found.mean:.3f} ({found.low:.3f}-{found.high:.3f}, subjects resampled)")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    maps = commands.add_parser("maps")
    maps.add_argument("maps", type=Path)
    maps.add_argument("--count", type=int, default=150)
    maps.add_argument("--seed", type=int, default=1)
    maps.set_defaults(run=draw_maps)
    first = commands.add_parser("pretrain")
    first.add_argument("maps", type=Path)
    first.add_argument("out", type=Path)
    first.add_argument("--config", type=Path, default=PRE)
    first.add_argument("--initial", type=Path, help="weights of an earlier pretraining to go on from")
    first.add_argument("--ends", type=float, default=0.25, help="share of patches round the cord's end")
    first.set_defaults(run=pretrain)
    one = commands.add_parser("train")
    one.add_argument("dataset", type=Path)
    one.add_argument("maps", type=Path)
    one.add_argument("pre", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--config", type=Path, default=FINE)
    one.add_argument("--share", type=float, default=0.4, help="of real examples")
    one.add_argument("--only", type=int, nargs="*", help="folds to train, -1 for all subjects")
    one.set_defaults(run=train)
    mean = commands.add_parser("average")
    for name in ("pre", "fine", "out"):
        mean.add_argument(name, type=Path)
    mean.add_argument("--config", type=Path, default=FINE)
    mean.add_argument("--fact", nargs=2, action="append", default=[], help="name and text for the provenance")
    mean.set_defaults(run=average)
    two = commands.add_parser("table")
    two.add_argument("dataset", type=Path)
    two.add_argument("out", type=Path)
    two.add_argument("--bundle", help="judge this model on every image instead of the folds'")
    two.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
