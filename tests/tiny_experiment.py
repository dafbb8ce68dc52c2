"""An experiment of seconds, and prepared cases for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.experiment import ExperimentConfig, load_experiment

NAMES = load_recipe("cord-lesion").sequence_names
SIZE = (16, 16, 32)
TOML = """
name = "tiny"
title = "Tiny & <quick>"
baseline = "baseline"
seeds = [0]
[split]
validation = 0.25
[availability]
keep = ["T2Sag"]
share = 0.5
[[settings]]
name = "T2Sag"
sequences = ["T2Sag"]
[[settings]]
name = "all"
[training]
recipe = "cord-lesion"
iterations = 4
checkpoint_every = 1
log_every = 1
precision = "32-true"
threads = 1
tensorboard = false
network = { channels = [2, 2, 2, 2, 2], skips = "anchor" }
optimizer = { name = "adamw", lr = 0.01 }
sampling = { patch_vox = [16, 16, 16], batch = 1 }
validation = { thresholds = [0.4, 0.6], min_volumes_mm3 = [0.0] }
[[arms]]
name = "baseline"
paper = { f1 = 0.5 }
training = { network = { sequences = ["T2Sag"] } }
[[arms]]
name = "frozen"
title = "Frozen <b>"
needs = "baseline"
training = { arm = { kind = "frozen", sequence = "T2Sag" } }
[[arms]]
name = "extra"
optional = true
"""


def tiny_experiment(folder: Path) -> ExperimentConfig:
    """The experiment, read from a file in that folder."""
    path = folder / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return load_experiment(path)


def write_cases(root: Path, count: int, *, first: int = 0) -> Path:
    for number in range(first, first + count):
        folder = root / f"sub-{number:02d}"
        folder.mkdir(parents=True)
        label = np.zeros(SIZE, np.uint8)
        if number % 4:
            label[6:9, 6:9, 10:20] = 1
        available = np.array([True, True, number % 2 == 0, False, False, False])
        coverage = np.broadcast_to(available[:, None, None, None], (6, *SIZE)).copy()
        image = (np.random.default_rng(number).standard_normal((6, *SIZE)) + 2 * label) * coverage
        for name, array in (("image", image.astype(np.float16)), ("coverage", coverage), ("label", label)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        record = {
            "case": folder.name, "subject": f"{number:02d}", "sequences": list(NAMES),
            "available": available.tolist(), "preparation": 1, "cord_method": "masks",
        }  # fmt: skip
        (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")
    return root
