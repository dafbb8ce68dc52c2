"""Pictures of what a lesion model gets wrong on prepared synthetic cases, for its card.

Usage:
    python benchmarks/failures.py PREPARED OUT.png [--model cord-lesion] [--rows 6]

PREPARED holds cases of the demo, as ``lesion_demo.py`` leaves them in its folder. The largest lesions that
are visible and missed, and the largest outlines that are false, take turns. One row for each: a sagittal and
an axial cut through its middle in every sequence that covers it; truth solid, prediction dashed. Use it on
synthetic cases: no image of a person belongs into the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from lesion_model import LesionModel

from bids_scseg.measure.overlap import overlap_table
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.training.sample import IGNORE

mpl.use("Agg")
import matplotlib.pyplot as plt

PROFILE = PROFILES["walsh2024"]
REACH_VOX = 50  # shown along S-I on each side
TRUTH, PREDICTED = "#1b9e77", "#ffb000"  # told apart by the colour-blind, and by the lines' style


def errors(case, predicted):
    """(kind, size, middle) of the visible lesions that were missed and of the false outlines."""
    truth = np.where(case.label == IGNORE, 0, case.label).astype(np.int32)
    numbers = [n for n in np.unique(truth) if n]
    dense = np.zeros(IGNORE + 1, np.int32)
    dense[numbers] = np.arange(1, len(numbers) + 1)
    found, right = PROFILE.match(overlap_table(dense[truth], predicted))
    here = {name for name, there in zip(case.sequences, case.available, strict=True) if there}
    for number, hit in zip(numbers, found, strict=True):
        if not hit and set(case.visible.get(number, ())) & here:
            yield "missed", *place(truth == number)
    for number, good in enumerate(right, start=1):
        if not good:
            yield "false", *place(predicted == number)


def place(mask):
    """Voxels, and the middle."""
    return int(mask.sum()), tuple(int(n) for n in np.median(np.argwhere(mask), axis=0))


def collect(prepared, model):
    """All errors, largest first within each kind, the kinds taking turns."""
    model = LesionModel(model)
    kinds = {"missed": [], "false": []}
    for case in model.cases(prepared):
        predicted = model.label(model.probability(case), case)
        for kind, size, middle in errors(case, predicted):
            kinds[kind].append((size, case.folder.name, middle, case, predicted))
    for found in kinds.values():
        found.sort(key=lambda item: -item[0])
    turns = [
        (kind, *found[n])
        for n in range(len(kinds["missed"] + kinds["false"]))
        for kind, found in kinds.items()
        if n < len(found)
    ]
    print({kind: len(found) for kind, found in kinds.items()})
    return turns


def draw(axis, case, predicted, *, channel, middle):
    """Sagittal cut on the left, axial cut on the right, in one image."""
    i, _, k = middle
    low, high = max(k - REACH_VOX, 0), k + REACH_VOX
    cut = np.s_[i, :, low:high], np.s_[:, :, k]
    views = [np.asarray(case.image[case.channel(channel)], np.float32)[c] for c in cut]
    truth = np.where(case.label == IGNORE, 0, case.label) > 0
    height = views[0].shape[1]
    sheet = np.full((height, views[0].shape[0] + 4 + views[1].shape[0]), -6.0)
    lines = [np.zeros_like(sheet), np.zeros_like(sheet)]
    put(sheet, views[0].T, views[1].T)
    for line, mask in zip(lines, (truth, predicted > 0), strict=True):
        put(line, mask[cut[0]].T, mask[cut[1]].T)
    axis.imshow(sheet, cmap="gray", origin="lower", vmin=-4, vmax=6)
    for line, colour, style in zip(lines, (TRUTH, PREDICTED), ("solid", "dashed"), strict=True):
        if line.any():
            axis.contour(line, levels=[0.5], colors=colour, linestyles=style, linewidths=1.2)


def put(sheet, left, right):
    """The sagittal view on the left, the axial one in the middle of the right side, in place."""
    sheet[: left.shape[0], : left.shape[1]] = left
    bottom = max((sheet.shape[0] - right.shape[0]) // 2, 0)
    sheet[bottom : bottom + right.shape[0], left.shape[1] + 4 :] = right[: sheet.shape[0] - bottom]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="cord-lesion")
    parser.add_argument("--rows", type=int, default=6)
    args = parser.parse_args()
    rows = collect(args.prepared, args.model)[: args.rows]
    names = rows[0][4].sequences
    figure, axes = plt.subplots(
        len(rows), len(names), figsize=(1.9 * len(names), 1.9 * len(rows)), squeeze=False
    )
    for line, (kind, size, name, middle, case, predicted) in zip(axes, rows, strict=True):
        for channel, axis in enumerate(line):
            axis.axis("off")
            seen = case.available[channel] and case.coverage[(case.channel(channel), *middle)]
            if seen:
                draw(axis, case, predicted, channel=channel, middle=middle)
            axis.set_title(f"{names[channel]}{'' if seen else ': not there'}", fontsize=7)
        line[0].text(
            -0.08, 0.5, f"{kind}, {size / 8:.0f} mm³\n{name}", transform=line[0].transAxes, fontsize=7,
            rotation=90, va="center", ha="right",
        )  # fmt: skip
    figure.tight_layout(pad=0.4)
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
