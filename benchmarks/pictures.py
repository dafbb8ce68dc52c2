"""Real and synthetic scans side by side, from your own copy of the data: pictures and numbers.

Usage:
    python benchmarks/pictures.py scans REAL SYNTHETIC OUT.png [--subjects 3]
    python benchmarks/pictures.py implants IMPLANTS SOURCE OUT.png [--lesions 8] [--sequence T2Sag]

Real images of people are no part of this repository, so neither are pictures of them. ``scans`` draws, for
each sequence that both datasets have, images in the same plane with the cord in the middle, real ones above,
and prints how cord, fluid, noise and edges compare. ``implants`` draws implanted lesions before and after.
The datasets need cord masks under ``derivatives``.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import ndimage

from bids_scseg.bids.query import find_studies
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.nifti import read_image
from bids_scseg.synth.cords import ring_voxels
from bids_scseg.synth.implanted import read_real_session

mpl.use("Agg")
HALF_MM = {"ax": (24.0, 24.0), "sag": (24.0, 60.0)}
MEASURES = {
    "fluid / cord": "90th percentile of the 2.5 mm round the cord, over the cord's mean",
    "deviation within the cord": "standard deviation / mean, inner cord, median over 10 mm pieces",
    "step between neighbours": "median absolute difference of neighbouring voxels in plane / cord's mean",
    "edge of the cord": "gradient across the mask's surface, mm⁻¹, over the difference of fluid and cord",
}


def images_of(root, limit):
    """Images with cords by sequence, of the first subjects that have them."""
    folders = sorted(path for path in (root / "derivatives").iterdir() if path.is_dir())
    out, subjects = {}, {}
    recipe = load_recipe("cord-lesion")
    for study in find_studies(root):
        session = read_real_session(study, recipe, masks=folders)
        for image in session.images:
            known = subjects.setdefault(image.sequence, set())
            if study.subject not in known and len(known) < limit:
                known.add(study.subject)
                out.setdefault(image.sequence, []).append(image)
    return out


def measures(image):
    """One value for each of `MEASURES`."""
    inside = image.cord >= 0.5
    inner = inside & (ndimage.distance_transform_edt(inside, sampling=image.grid.spacing) > 1.0)
    level = float(image.data[inside].mean())
    fluid = float(np.percentile(image.data[tuple(ring_voxels(image).T)], 90))
    along = image.grid.canonical_axes()[2][0]
    thick = max(1, round(10 / image.grid.spacing[along]))
    pieces = [np.take(image.data, range(k, k + thick), along)[np.take(inner, range(k, k + thick), along)]
              for k in range(0, image.data.shape[along] - thick + 1, thick)]  # fmt: skip
    spread = [piece.std() / piece.mean() for piece in pieces if piece.size > 20]
    plane = [axis for axis in range(3) if axis != along]
    steps = []
    for axis in plane:
        pair = np.logical_and(inner, np.roll(inner, -1, axis))
        steps.append(np.abs(np.roll(image.data, -1, axis) - image.data)[pair])
    gradient = np.sqrt(sum(np.gradient(image.data, image.grid.spacing[a], axis=a) ** 2 for a in plane))
    surface = inside & ~ndimage.binary_erosion(inside)
    edge = np.median(gradient[surface]) / max(abs(fluid - level), 1e-6)
    step = np.median(np.concatenate(steps)) / level
    return [fluid / level, float(np.median(spread)) if spread else np.nan, float(step), float(edge)]


def cut(image, data, centre, plane, half):
    """A cut through a voxel, window of ``half`` mm round it; rows upwards or forwards, and its aspect."""
    (right, _), (front, front_sign), (up, up_sign) = image.grid.canonical_axes()
    rows, row_sign = (front, front_sign) if plane == "ax" else (up, up_sign)
    columns, sign = (right, 1) if plane == "ax" else (front, front_sign)
    fixed = up if plane == "ax" else right
    spacing = image.grid.spacing
    reach = {columns: half[0], rows: half[1]}
    index = [slice(None)] * 3
    for axis, mm in reach.items():
        steps = int(mm / spacing[axis])
        index[axis] = slice(max(int(centre[axis]) - steps, 0), int(centre[axis]) + steps + 1)
    index[fixed] = int(centre[fixed])
    picture = data[tuple(index)]
    if columns < rows:
        picture = picture.T
    return picture[::-row_sign, ::sign], spacing[rows] / spacing[columns]


def draw(axis, image, data, centre, plane, title, window):
    picture, aspect = cut(image, data, centre, plane, HALF_MM[plane])
    axis.imshow(picture, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    axis.set_title(title, fontsize=7)
    axis.axis("off")


def window_of(image):
    """Grey levels from dark to fluid."""
    near = image.data[tuple(ring_voxels(image).T)]
    level = image.data[image.cord >= 0.5]
    return 0, float(max(np.percentile(near, 97), np.percentile(level, 99.5)))


def run_scans(args):
    """Pictures of scans, and the table."""
    import matplotlib.pyplot as plt

    real, made = images_of(args.real, args.subjects), images_of(args.synthetic, args.subjects)
    shared = [name for name in real if name in made]
    figure, axes = plt.subplots(
        2 * len(shared), args.subjects, figsize=(3 * args.subjects, 6 * len(shared)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    print("| sequence |  | " + " | ".join(MEASURES) + " |\n|---|---|" + "---|" * len(MEASURES))
    for n, name in enumerate(shared):
        plane = "ax" if name.endswith("Ax") else "sag"
        for m, (kind, images) in enumerate((("real", real[name]), ("synthetic", made[name]))):
            values = np.array([measures(image) for image in images])
            cells = [f"{np.nanmedian(v):.2f} ({np.nanmin(v):.2f}–{np.nanmax(v):.2f})" for v in values.T]
            print(f"| {name} | {kind} ({len(images)}) | " + " | ".join(cells) + " |")
            for k, image in enumerate(images):
                centre = np.median(np.argwhere(image.cord >= 0.5), axis=0)
                title = f"{kind} {name}"
                draw(axes[2 * n + m, k], image, image.data, centre, plane, title, window_of(image))
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


def run_implants(args):
    """Pictures of lesions: the source, and the same with the lesion."""
    import matplotlib.pyplot as plt

    table = args.implants / "derivatives" / "labels" / "lesions.tsv"
    with table.open(encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if int(row["voxels"]) > 0]
    rows = [row for row in rows if row["sequence"] == args.sequence] if args.sequence else rows
    rows = rows[:: max(1, len(rows) // args.lesions)][: args.lesions]
    figure, axes = plt.subplots(len(rows), 4, figsize=(10, 2.7 * len(rows)), squeeze=False)
    recipe = load_recipe("cord-lesion")
    for n, row in enumerate(rows):
        path = args.implants / row["image"]
        sidecar = json.loads(path.with_suffix("").with_suffix(".json").read_text(encoding="utf-8"))
        source = args.source / sidecar["SourceImage"]
        label, session = row["participant_id"][4:], row["session_id"][4:]
        sessions = [] if row["session_id"] == "n/a" else [session]
        study = find_studies(args.implants, participants=[label], sessions=sessions)[0]
        found = read_real_session(study, recipe, masks=[args.implants / "derivatives" / "labels"])
        image = next(item for item in found.images if item.name == row["image"])
        before = read_image(source)[0]
        centre = np.argwhere(lesion_of(args.implants, row, image)).mean(axis=0)
        for m, (word, data) in enumerate((("before", before), ("after", image.data))):
            for k, plane in enumerate(("ax", "sag")):
                title = f"{row['sequence']} {word}: {row['realised']}, CNR {float(row['cnr']):.1f}"
                draw(axes[n, 2 * k + m], image, data, centre, plane, title, window_of(image))
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)


def lesion_of(root, row, image):
    """Voxels of the row's lesion in its image."""
    import nibabel as nib

    name = Path(row["image"]).name.split(".")[0]
    stem, suffix = name.rsplit("_", 1)
    path = root / "derivatives" / "labels" / Path(row["image"]).parent
    found = np.asarray(nib.load(path / f"{stem}_seg-lesions_desc-{suffix}_dseg.nii.gz").dataobj)
    return found.reshape(image.data.shape) == int(row["index"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    scans = commands.add_parser("scans")
    scans.add_argument("real", type=Path)
    scans.add_argument("synthetic", type=Path)
    scans.add_argument("out", type=Path)
    scans.add_argument("--subjects", type=int, default=3)
    scans.set_defaults(run=run_scans)
    implants = commands.add_parser("implants")
    implants.add_argument("implants", type=Path)
    implants.add_argument("source", type=Path)
    implants.add_argument("out", type=Path)
    implants.add_argument("--lesions", type=int, default=8)
    implants.add_argument("--sequence")
    implants.set_defaults(run=run_implants)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
