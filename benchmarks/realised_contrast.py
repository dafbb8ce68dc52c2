"""How bright the lesions of a test set came out against the cord around them, by sequence.

Usage:
    python benchmarks/realised_contrast.py BIDS

BIDS is what ``independent_implants.py`` wrote: images, with masks of cord and lesions under
``derivatives/labels``. A lesion's contrast is its mean less that of the lesion-free cord within 10 mm along
S-I, in standard deviations of that cord and as a share of its signal. The cord is taken without its outer
millimetre in the axial plane, where fluid mixes in; so is the lesion, if three voxels of it remain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

EDGE_MM, NEAR_MM = 1.0, 10.0
LEAST_CORD, LEAST_LESION = 20, 3  # voxels


def inside(cord, affine):
    """The cord without its outer millimetre in the plane across S-I, and that axis of the lattice."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(np.argmax(np.abs(affine[2, :3]) / zooms))
    out = np.zeros(cord.shape, bool)
    sampling = [zoom for n, zoom in enumerate(zooms) if n != axis]
    for index in range(cord.shape[axis]):
        place = tuple(index if n == axis else slice(None) for n in range(3))
        if cord[place].any():
            away = ndimage.distance_transform_edt(np.pad(cord[place], 1), sampling=sampling)
            out[place] = away[1:-1, 1:-1] > EDGE_MM
    return out, axis


def contrasts(image, cord, lesions, affine):
    """Contrast of each connected lesion (n, 2): in standard deviations of the cord, and in per cent of it."""
    core, axis = inside(cord, affine)
    reach = NEAR_MM / np.linalg.norm(affine[:3, axis])
    free = core & ~ndimage.binary_dilation(lesions, np.ones((3, 3, 3)))
    heights = np.indices(image.shape)[axis]
    numbers, count = ndimage.label(lesions, np.ones((3, 3, 3)))
    out = []
    for number in range(1, count + 1):
        lesion = numbers == number
        rows = heights[lesion]
        around = image[free & (heights >= rows.min() - reach) & (heights <= rows.max() + reach)]
        if around.size < LEAST_CORD or not around.std() > 0 or not around.mean() > 0:
            continue
        pure = lesion & core
        own = image[pure if pure.sum() >= LEAST_LESION else lesion].mean()
        out.append(((own - around.mean()) / around.std(), 100 * (own / around.mean() - 1)))
    return np.array(out).reshape(-1, 2)


def by_suffix(bids):
    """Contrasts of all lesions of a dataset, by suffix of the image."""
    out = {}
    for mask in sorted((bids / "derivatives" / "labels").rglob("*_label-lesion_mask.nii.gz")):
        record = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
        file = bids / record["Sources"][0].removeprefix("bids:raw:")
        lesions = np.asarray(nib.load(mask).dataobj) > 0
        if not lesions.any():
            continue
        cord = np.asarray(nib.load(mask.with_name(mask.name.replace("lesion", "SC"))).dataobj) > 0
        image = nib.load(file)
        found = contrasts(np.asarray(image.dataobj, np.float64), cord, lesions, image.affine)
        out.setdefault(file.name.split(".")[0].split("_")[-1], []).append(found)
    return {suffix: np.concatenate(parts) for suffix, parts in sorted(out.items())}


def table(found):
    """Lines: median and 10-90 % of both measures by suffix."""
    yield "| suffix | lesions | contrast, SD of the cord's inside | contrast, % of the cord's signal |"
    yield "|---|---|---|---|"
    for suffix, values in found.items():
        if len(values):
            low, middle, high = np.percentile(values, [10, 50, 90], axis=0)
            cells = [f"{m:.1f} ({a:.1f} to {b:.1f})" for a, m, b in zip(low, middle, high, strict=True)]
            yield f"| {suffix} | {len(values)} | {cells[0]} | {cells[1]} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bids", type=Path)
    for line in table(by_suffix(parser.parse_args().bids)):
        print(line)


if __name__ == "__main__":
    main()
