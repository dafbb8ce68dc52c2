"""How fast training examples are made, how fast they are used, and how long the loop waits for them.

Usage:
    python benchmarks/training.py CONFIG --data PREPARED [--workers 0 1 4] [--iterations 60] [--seconds 20]
    python benchmarks/training.py CONFIG --random 8 [...]
    python benchmarks/training.py CONFIG --synthetic [--generators 0 1 2] [...]

Examples per second of the data pipeline alone and of training, for each number of background processes, and
the share of the loop's time that passed between the end of one batch and the arrival of the next, by the
loop's own clock (``waiting`` in ``log.csv``). ``--random`` makes prepared cases of noise in a temporary
folder: all that matters for speed is their size. ``--synthetic`` trains on sessions that are drawn meanwhile,
for each number of generators, and prints how many sessions per second they made beside the training.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.arms import shown_sequences
from bids_scseg.training.cases import kept_sequences, load_cases
from bids_scseg.training.config import configured_recipe, load_config
from bids_scseg.training.dataset import PreparedCases
from bids_scseg.training.fit import fit
from bids_scseg.training.loader import Order, make_loader
from bids_scseg.training.synthetic import generating, open_sessions

SLICES = 700  # of a random case: 350 mm of cord
WARM_UP = 10  # iterations and batches that count nowhere


def write_random_cases(folder, recipe, *, count):
    """Prepared cases of noise, half of the sequences missing in half of them."""
    names, window = recipe.sequence_names, recipe.grid.window_vox or (48, 48)
    for number in range(count):
        rng, case = np.random.default_rng(number), folder / f"sub-{number}"
        case.mkdir(parents=True)
        available = np.array([number % 2 == 0 or n % 2 == 0 for n in range(len(names))])
        coverage = np.zeros((len(names), *window, SLICES), bool)
        coverage[available] = True
        image = rng.standard_normal(coverage.shape, np.float32).astype(np.float16) * coverage
        label = np.zeros(coverage.shape[1:], np.uint8)
        for lesion in range(1, 4):
            start = int(rng.integers(SLICES - 20))
            label[20:24, 20:24, start : start + 20] = lesion
        for name, array in (("image", image), ("coverage", coverage), ("label", label)):
            np.save(case / f"{name}.npy", array, allow_pickle=False)
        record = {
            "case": case.name, "subject": str(number), "sequences": names, "available": available.tolist(),
        }  # fmt: skip
        (case / "case.json").write_text(json.dumps(record))


def pipeline_speed(source, sampling, *, seconds):
    """Examples per second that the data pipeline makes when nothing else is done."""
    loader = iter(make_loader(source, Order(first=0, batches=10**6, size=sampling.batch), sampling=sampling))
    for _ in range(WARM_UP):
        next(loader)
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        next(loader)
        count += sampling.batch
    return count / (time.monotonic() - started)


def training_speed(config, source, recipe, *, iterations):
    """Examples per second of training, and the share of time that the loop waits for data."""
    run = replace(
        config,
        iterations=WARM_UP + iterations,
        log_every=WARM_UP,
        checkpoint_every=10**6,
        initial="",
        tensorboard=False,
    )
    with tempfile.TemporaryDirectory() as out:
        fit(run, source, recipe=recipe, out=Path(out))
        with (Path(out) / "log.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))[1:]
    seconds = np.array([float(row["seconds"]) for row in rows])
    waiting = np.array([float(row["waiting"]) for row in rows])
    each = run.sampling.batch * run.sampling.accumulate
    return each / seconds.mean(), float((waiting * seconds).sum() / seconds.sum())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="folder of prepared cases")
    data.add_argument("--random", type=int, metavar="N", help="cases of noise")
    data.add_argument("--synthetic", action="store_true", help="sessions that are drawn meanwhile")
    parser.add_argument("--generators", type=int, nargs="+", help="default: the configuration's")
    parser.add_argument("--workers", type=int, nargs="+", help="default: the configuration's")
    parser.add_argument("--iterations", type=int, default=60, help="with the network")
    parser.add_argument("--seconds", type=float, default=20.0, help="without the network")
    args = parser.parse_args()
    config = load_config(args.config)
    recipe = load_recipe(config.recipe)
    if args.synthetic:
        measure_synthetic(args, config, recipe)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            write_random_cases(Path(folder), recipe, count=args.random)
        measure(args, config, recipe, args.data or Path(folder))


def measure_synthetic(args, config, recipe):
    """Sessions and examples per second and the share of waiting, from an empty folder for each row."""
    trained = configured_recipe(config, recipe)
    print(f"{config.name}: {config.data.live} sessions live, {config.data.patches} patches of each")
    print(
        "| generators | s until the first example | sessions/s in training | examples/s | waiting for data |"
    )
    print("|---|---|---|---|---|")
    for count in args.generators or [config.data.generators]:
        run = replace(config, data=replace(config.data, synthetic=True, generators=count))
        with tempfile.TemporaryDirectory() as folder:
            source = open_sessions(run, trained, out=Path(folder))
            started = time.monotonic()
            with generating(source, first=0):
                source.summary()
                ready, before = time.monotonic(), newest(source)
                busy, waiting = training_speed(run, source, recipe, iterations=args.iterations)
                made = (newest(source) - before) / (time.monotonic() - ready)
        print(f"| {count} | {ready - started:.0f} | {made:.3f} | {busy:.2f} | {waiting:.1%} |", flush=True)


def newest(source):
    """Number of the newest session that is there."""
    return max(int(path.name) for path in source.sessions.folder.glob("[0-9]*"))


def measure(args, config, recipe, data):
    trained = configured_recipe(config, recipe)
    shown = shown_sequences(config, trained)
    cases = load_cases(data, sequences=trained.network.sequences)
    cases = [case for case in cases if kept_sequences(case, shown).any()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {config.threads} threads"
    print(f"{config.name}: {len(cases)} cases, patches of {config.sampling.patch_vox}, {device}")
    print("| workers | examples/s without network | examples/s in training | waiting for data |")
    print("|---|---|---|---|")
    for workers in args.workers or [config.sampling.workers]:
        sampling = replace(config.sampling, workers=workers)
        source = PreparedCases(cases=cases, sampling=sampling, augmentation=config.augment, seed=config.seed)
        alone = pipeline_speed(source, sampling, seconds=args.seconds)
        run = replace(config, sampling=sampling)
        busy, waiting = training_speed(run, source, recipe, iterations=args.iterations)
        print(f"| {workers} | {alone:.2f} | {busy:.2f} | {waiting:.1%} |", flush=True)


if __name__ == "__main__":
    main()
