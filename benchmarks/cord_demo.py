"""The cord finder on synthetic whole-spine sessions: how wide its masks are, and where they end.

Usage:
    scseg demo DEMO --subjects 20 --seed 7001
    python benchmarks/cord_demo.py DEMO [--model cord-finder] [--subjects 01 02 …] [--jobs 2]

Each image with a cord mask of the dataset's truth is searched as in the pipeline. Dice and area are taken
over the slices along S-I that hold true cord; ``below`` and ``above`` are how far the mask goes on beyond
them, in mm (0 where the cord leaves the image; above lies the brainstem, which the finder may mark or not),
``network`` how far below it went before roots were cut off, ``cut`` how much of the true cord's length this
took away. An image in which no cord is found has Dice 0.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_scseg.errors import CordNotFoundError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.inference.predict import find_cord, load_network
from bids_scseg.preprocess.cordmask import clean_cord, credible_cord
from bids_scseg.space.grid import Grid

PLANES = {"sag": "sagittal", "ax": "axial", "iso": "volume", "cor": "coronal"}


def source(mask, dataset):
    """The image that a mask of the truth belongs to."""
    name = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())["Sources"][0]
    return dataset / name.removeprefix("bids:raw:")


def extent(mask):
    """First and last slice along the third axis that the mask reaches."""
    slices = np.flatnonzero(mask.any((0, 1)))
    return int(slices[0]), int(slices[-1])


def judge(cleaned, found, truth, grid):
    """Dice and areas within the true cord's extent, overruns in mm, share of its slices without mask."""
    order = [axis for axis, _ in grid.canonical_axes()]
    turned = [axis for axis, (_, sign) in enumerate(grid.canonical_axes()) if sign < 0]
    cleaned, found, truth = (np.flip(mask.transpose(order), turned) for mask in (cleaned, found, truth))
    spacing = np.asarray(grid.spacing)[order]
    first, last = extent(truth)
    low, high = extent(found)
    inside = found[:, :, first : last + 1]
    true = truth[:, :, first : last + 1]
    slices = true.any((0, 1))
    lost = slices & cleaned[:, :, first : last + 1].any((0, 1)) & ~inside.any((0, 1))
    plane = spacing[0] * spacing[1]
    return {
        "dice": 2 * float((inside & true).sum()) / float(inside.sum() + true.sum()),
        "area": float(inside.sum() * plane / slices.sum()),
        "true_area": float(true.sum() * plane / slices.sum()),
        "missed": float((slices & ~inside.any((0, 1))).sum() / slices.sum()),
        "below": max(first - low, 0) * spacing[2],
        "network": max(first - extent(cleaned)[0], 0) * spacing[2],
        "cut": float(lost.sum() * spacing[2]),
        "above": max(high - last, 0) * spacing[2],
        "conus": bool(first > 0),
    }


def subject(folder, *, dataset, model):
    """Figures of all images of one subject."""
    bundle = load_bundle(model)
    network = load_network(bundle)
    rows = []
    for mask in sorted(folder.rglob("*_label-SC_mask.nii.gz")):
        path = source(mask, dataset)
        image = nib.load(path)
        values, truth = np.asarray(image.dataobj, np.float32), np.asarray(nib.load(mask).dataobj) > 0.5
        grid = Grid(shape=values.shape, affine=image.affine)
        row = {"image": path.name.removesuffix(".nii.gz"), "plane": PLANES[grid.plane()]}
        try:
            prob = find_cord(network, bundle, image=values, affine=image.affine)
            cleaned = clean_cord(prob, grid)
            found = credible_cord(cleaned, prob, grid)
        except CordNotFoundError:  # a result here
            rows.append(row | {"dice": 0.0})
            continue
        rows.append(row | judge(cleaned, found, truth, grid))
    return rows


def show(rows):
    """One line for each image, then one for each plane."""
    for row in rows:
        if "area" not in row:
            print(f"{row['image']:48s} no cord found")
            continue
        print(
            f"{row['image']:48s} Dice {row['dice']:.3f}"
            f"  area {row['area']:3.0f} of {row['true_area']:3.0f} mm2"
            f"  missed {row['missed']:4.0%}  below {row['below']:5.1f} (network {row['network']:5.1f})"
            f"  cut {row['cut']:4.1f}  above {row['above']:5.1f} mm"
        )
    for plane in sorted({row["plane"] for row in rows}):
        every = [row for row in rows if row["plane"] == plane]
        own, dice = [row for row in every if "area" in row], [row["dice"] for row in every]
        print(
            f"{plane}: {len(every)} images, {len(every) - len(own)} lost; "
            f"Dice median {np.median(dice):.3f}, worst {min(dice):.3f}"
        )
        if own:
            ratio = [row["area"] / row["true_area"] for row in own]
            print(f"  area found/true, median {np.median(ratio):.2f}; {told_ends(own)}")


def told_ends(rows):
    """How far masks reach below the conus, and what the rule about roots took of the cord, in words."""
    ends = [row for row in rows if row["conus"]]
    said = f"true cord cut off: {max(row['cut'] for row in rows):.1f} mm at most"
    for key, name in (("network", "by the network"), ("below", "without roots")) if ends else ():
        mm = [row[key] for row in ends]
        said += (
            f"; below the conus {name}, {len(mm)} images: {np.mean(mm):.1f} mm in the mean,"
            f" {np.median(mm):.1f} in the median, {max(mm):.0f} at most"
        )
    return said


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="cord-finder")
    parser.add_argument("--subjects", nargs="*", help="labels; default: all")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    labels = args.dataset / "derivatives" / "labels"
    folders = [
        folder
        for folder in sorted(labels.glob("sub-*"))
        if not args.subjects or folder.name.removeprefix("sub-") in args.subjects
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        parts = pool.map(partial(subject, dataset=args.dataset, model=args.model), folders)
        show([row for part in parts for row in part])


if __name__ == "__main__":
    main()
