"""A small prepared case with two lesions, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bids_scseg.training.cases import TrainingCase

NAMES = ("T2Sag", "STIR", "MP2RAGE")
SIZE = (16, 16, 40)


def make_case(subject: str = "01", **changes: object) -> TrainingCase:
    coverage = np.ones((3, *SIZE), bool)
    coverage[2] = False
    coverage[1, :, :, :10] = False
    label = np.zeros(SIZE, np.uint8)
    label[6:9, 6:9, 5:8] = 1
    label[6:9, 6:9, 30:34] = 2
    image = np.random.default_rng(0).standard_normal((3, *SIZE)).astype(np.float16) * coverage
    fields = {
        "name": f"sub-{subject}",
        "subject": subject,
        "sequences": NAMES,
        "available": np.array([True, True, False]),
        "image": image,
        "coverage": coverage,
        "label": label,
    }
    return TrainingCase(**{**fields, **changes})  # type: ignore[arg-type]


def save(folder: Path, case: TrainingCase) -> Path:
    folder.mkdir(parents=True)
    for name in ("image", "coverage", "label"):
        np.save(folder / f"{name}.npy", getattr(case, name), allow_pickle=False)
    record = {
        "case": case.name,
        "subject": case.subject,
        "session": None,
        "recipe": "cord-lesion",
        "sequences": list(case.sequences),
        "available": case.available.tolist(),
        "geometry": None,
    }
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
