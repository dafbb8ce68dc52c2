"""The synthetic data: their statistics against what is wanted, and how fast they are made.

Usage:
    python benchmarks/synthesis.py drawn [--subjects 3000]
    python benchmarks/synthesis.py realised DATASET … [--first 0]
    python benchmarks/synthesis.py speed [--subjects 4] [--patches 16]

``drawn`` draws lesions without images; ``realised`` reads the truth tables of datasets that `scseg demo` or
`write_training_set` wrote (``--first``: leave out training subjects with lower numbers); ``speed`` times
subjects in memory, their preparation and patches from them, in this one process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bids_scseg.preprocess.labels import labels_to_prepared
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.geometry import Slab
from bids_scseg.synth.anatomy import cord_area_mm2, draw_anatomy, level_of
from bids_scseg.synth.dataset import write_training_set
from bids_scseg.synth.lesions import (
    CLASSES,
    COLUMNS,
    DETECTABILITY,
    GREY_SHARE,
    LESION_FREE_SHARE,
    draw_lesions,
)
from bids_scseg.synth.memory import draw_session
from bids_scseg.synth.subject import AREA_MM2
from bids_scseg.training.cases import TrainingCase
from bids_scseg.training.config import SamplingConfig
from bids_scseg.training.dataset import PreparedCases

ANATOMIES = 200
SEED = 0
DRAWN = ("column", "grey", "level", "area", "length", "share", "segments")


def percent(hits, count):
    """A share in percent with its 95 % interval (Wilson)."""
    p, z = hits / count, 1.96
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return f"{100 * p:.1f} ({100 * (middle - half):.1f}–{100 * (middle + half):.1f})"


def mean(values):
    """A mean with its 95 % interval."""
    values = np.asarray(values, float)
    half = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
    return f"{values.mean():.2f} ({values.mean() - half:.2f}–{values.mean() + half:.2f})"


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def drawn(args):
    rng = np.random.default_rng(SEED)
    anatomies = [draw_anatomy(np.random.default_rng([SEED, n])) for n in range(ANATOMIES)]
    counts, rows = [], []
    for number in range(args.subjects):
        anatomy = anatomies[number % ANATOMIES]
        lesions = draw_lesions(rng, anatomy)
        counts.append(len(lesions))
        for lesion in lesions:
            level = level_of(anatomy, lesion.z_mm)
            low, high = anatomy.level_z[level]
            share = lesion.area_mm2 / cord_area_mm2(anatomy, lesion.z_mm)[0]
            size = (lesion.area_mm2, lesion.length_mm, share, lesion.length_mm / (high - low))
            rows.append((lesion.column.split()[0], lesion.grey, level, *size))
    print_drawn(np.array(counts), pd.DataFrame(rows, columns=list(DRAWN)))
    for level, area in AREA_MM2.items():
        if level in ("C3", "C5", "T3", "T8", "T11"):
            areas = [cord_area_mm2(a, sum(a.level_z[level]) / 2)[0] for a in anatomies]
            row(f"cord area at {level}, mm²", area, mean(areas))


def print_drawn(counts, table):
    row("", "target", "drawn")
    row("---", "---", "---")
    row("subjects without lesions, %", 100 * LESION_FREE_SHARE, percent((counts == 0).sum(), counts.size))
    row("lesions per subject", "1.8–3.2", mean(counts))
    row("lesions per subject with lesions", "1.8–3.2", mean(counts[counts > 0]))
    row("reach the grey matter, %", 100 * GREY_SHARE, percent(table.grey.sum(), len(table)))
    neck = table.level.str.startswith("C")
    for column, (share, area, length) in COLUMNS.items():
        some = table[table.column == column]
        row(f"{column}, %", 100 * share, percent(len(some), len(table)))
        row(f"{column}: cross-section, mm²", area, mean(some.area))
        row(f"{column}: share of the cervical cord, %", "", mean(100 * some.share[neck]))
        row(f"{column}: share of the thoracic cord, %", "", mean(100 * some.share[~neck]))
        row(f"{column}: length, mm", length, mean(some.length))
    row("at most two segments, %", "mostly", percent((table.segments <= 2).sum(), len(table)))
    row("under half of the cross-section, %", "mostly", percent((table.share < 0.5).sum(), len(table)))
    row("cervical, %", "", percent(neck.sum(), len(table)))
    row("T1 to T11, %", "", percent((~neck & ~table.level.isin(["T12", "L1", "L2"])).sum(), len(table)))


def realised(args):
    tables = []
    for dataset in args.datasets:
        for path in sorted((dataset / "derivatives" / "labels").rglob("*_desc-truth_dseg.tsv")):
            if int(path.name.split("_")[0].removeprefix("sub-")) >= args.first:
                tables.append(pd.read_csv(path, sep="\t"))
    table = pd.concat([one for one in tables if len(one)])
    print(f"{len(tables)} sessions, {len(table)} lesions; percent (95 % interval)")
    row("sequence", "covered lesions", "class", "target", "drawn", "realised", "drawn = realised, %")
    row(*["---"] * 7)
    for sequence, wanted in DETECTABILITY.items():
        if f"class_{sequence}" not in table:
            continue
        some = table[table[f"class_{sequence}"].notna()]
        same = (some[f"class_{sequence}"] == some[f"realised_{sequence}"]).mean() if len(some) else np.nan
        for grade, target in zip(CLASSES, wanted, strict=True):
            if len(some):
                shares = [
                    percent((some[f"{kind}_{sequence}"] == grade).sum(), len(some))
                    for kind in ("class", "realised")
                ]
                row(sequence, len(some), grade, target, *shares, f"{100 * same:.0f}")


def prepared(session, recipe):
    """A training case of a session in memory."""
    case, _ = prepare_session(session.images, session.cords, recipe, register=False)
    slab = Slab(key=case.geometry.anchor, index=0, file="truth", grid=session.lesions_grid)
    return TrainingCase(
        name=session.label, subject=session.label, sequences=case.sequences, available=case.available,
        image=case.image, coverage=case.coverage,
        label=labels_to_prepared(case.geometry, session.lesions, slab).astype(np.uint8),
        visible=session.visible, faint=session.faint,
    )  # fmt: skip


class Clock:
    """CPU seconds of this process by step."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name, function):
        """What ``function`` returns; its time is added to ``name``."""
        start = time.process_time()
        out = function()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return out


def speed(args):
    recipe, clock, start = load_recipe("cord-lesion"), Clock(), time.time()
    for number in range(args.subjects):
        session = clock("subject in memory", lambda n=number: draw_session(SEED, n))
        case = clock("preparation", lambda s=session: prepared(s, recipe))
        source = PreparedCases(cases=[case], sampling=SamplingConfig(), seed=number)
        clock("patches", lambda s=source: [s.sample(n) for n in range(args.patches)])
    wall = time.time() - start
    with tempfile.TemporaryDirectory() as folder:
        clock("subject in files", lambda: write_training_set(Path(folder), args.subjects, seed=SEED))
    for name, seconds in clock.seconds.items():
        print(f"{name}: {seconds / args.subjects:.2f} CPU s per subject")
    made = sum(clock.seconds[name] for name in ("subject in memory", "preparation")) / args.subjects
    patch = clock.seconds["patches"] / args.subjects / args.patches
    print(f"one patch: {patch:.3f} CPU s; {args.subjects / wall:.3f} subjects per s of wall time")
    print(f"subjects per CPU s: {1 / made:.3f}")
    for count in (1, 4, 16, 64):
        print(f"patches per CPU s, {count} of each subject: {count / (made + count * patch):.2f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("drawn")
    one.add_argument("--subjects", type=int, default=3000)
    one.set_defaults(run=drawn)
    two = commands.add_parser("realised")
    two.add_argument("datasets", type=Path, nargs="+")
    two.add_argument("--first", type=int, default=0)
    two.set_defaults(run=realised)
    three = commands.add_parser("speed")
    three.add_argument("--subjects", type=int, default=4)
    three.add_argument("--patches", type=int, default=16)
    three.set_defaults(run=speed)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
