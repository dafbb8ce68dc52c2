"""Sessions of one participant with lesions at known places, as files: for tests of changes over time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_scseg.bids.write import write_image, write_json, write_tsv
from bids_scseg.measure.lesions import lesion_columns
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid
from bids_scseg.workflows.pair import PairJob, compare_pair

SEQUENCES = ("T2Sag",)
#: Height of the anatomical origin in every session, mm.
ORIGIN_MM = 100.0
#: A lesion: offset to the right, to the front, height in mm, radius in mm.
Ball = tuple[float, float, float, float]


def straight_geometry(low: float = 0.0, high: float = 120.0, *, up: float = 0.0, file: str = "x") -> Geometry:
    """A straight cord along world S, seen from ``low`` to ``high``; all of it lies ``up`` mm higher."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = (-11.75, -11.75, low - 10 + up)
    native = np.diag([1.0, 1.0, 1.0, 1.0])
    native[:3, 3] = (-20, -20, low + up)
    s = np.arange(low, high + 1.0) + up
    return Geometry(
        frame="centerline",
        anchor="T2Sag",
        grid=Grid(shape=(48, 48, int((high - low + 20) * 2)), affine=affine),
        slabs=(
            Slab(
                key="T2Sag", index=0, file=file, grid=Grid(shape=(41, 41, int(high - low) + 1), affine=native)
            ),
        ),
        centerlines={
            "T2Sag": Centerline(s_mm=s, xy_mm=np.zeros((s.size, 2)), measured=np.ones(s.size, bool))
        },
    )


def write_timed_session(
    out: Path,
    label: str,
    balls: Sequence[Ball],
    *,
    up: float = 0.0,
    low: float = 0.0,
    high: float = 120.0,
    anatomical: bool = True,
    changes: dict[str, object] | None = None,
) -> Path:
    """Write a session's geometry, lesions, summary and log; the folder.

    ``up`` lifts the patient on the table, ``low`` and ``high`` are what the scan reaches of the cord; what
    is in ``changes`` changes the summary.
    """
    subject, _, session = label.partition("_")
    folder = f"{subject}/{session}/anat" if session else f"{subject}/anat"
    geometry = straight_geometry(low, high, up=up, file=f"{folder}/{label}_T2w.nii.gz")
    grid = geometry.fused_grid("T2Sag")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    world = grid.to_world(index) - [0, 0, up]
    labels = np.zeros(grid.shape, np.uint16)
    for number, (right, front, height, radius) in enumerate(balls, start=1):
        labels[np.linalg.norm(world - [right, front, height], axis=-1) <= radius] = number
    head = f"{folder}/{label}"
    known = {"Description": "test"}
    write_image(out, f"{head}_seg-lesions_dseg.nii.gz", labels, grid=grid, metadata=known)
    probability = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    write_image(out, f"{head}_label-lesion_probseg.nii.gz", probability, grid=grid, metadata=known)
    rows = [_row(number, ball, up) for number, ball in enumerate(balls, start=1)]
    columns = [column.name for column in lesion_columns(SEQUENCES)]
    for old in (out / folder).glob("*_dseg.tsv"):
        old.unlink()
    write_tsv(out, f"{head}_seg-lesions_dseg.tsv", rows, columns=columns)
    write_json(out, f"{head}_geometry.json", geometry.to_json())
    path = out / f"{head}_summary.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_json(
        out, f"{head}_summary.json", {**before, **_summary(balls, up, anatomical, before), **(changes or {})}
    )
    write_json(
        out, f"logs/{label}.json", {"label": label, "state": "done", "run": {"numerical_version": "1"}}
    )
    return out / folder


def _row(number: int, ball: Ball, up: float) -> dict[str, object]:
    right, front, height, radius = ball
    return {
        "index": number, "name": f"lesion-{number:02d}", "volume_mm3": 4 / 3 * np.pi * radius**3,
        "length_mm": 2 * radius, "centre_x_mm": right, "centre_y_mm": front, "centre_z_mm": height + up,
        "arc_length_mm": ORIGIN_MM - height, "level": "C4", "column": "dorsal",
    }  # fmt: skip


def _summary(
    balls: Sequence[Ball], up: float, anatomical: bool, before: dict[str, object]
) -> dict[str, object]:
    volume = sum(4 / 3 * np.pi * ball[3] ** 3 for ball in balls)
    cord_map = before.get("cord_map") or {"first": 0, "levels": [], "bin_mm": 5.0} | {
        name: []
        for name in (
            "cord_mm",
            "examined_mm",
            "cord_mm3",
            "lesion_mm3",
            "across_cord_mm3",
            "across_lesion_mm3",
        )
    }
    assert isinstance(cord_map, dict)
    return {
        "lesion_count": len(balls), "lesion_volume_mm3": volume, "lesion_load": volume / 8000,
        "cord_volume_mm3": 8000.0, "examined_length_mm": 120.0, "not_examined_mm": 0.0, "threshold": 0.5,
        "model": "cord-lesion", "model_sha256": "a" * 64, "sequences": "T2Sag", "anchor": "T2Sag",
        "arc_origin": "C2-C3 disc" if anatomical else "top of the prepared cord",
        "arc_origin_anatomical": anatomical,
        "T2Sag_examined_mm": 120.0, "cord_area_mm2": 60.0 + up,
        "cord_map": {**cord_map, "anatomical": anatomical, "origin_s_mm": ORIGIN_MM + up},
        "run": {"cord_method": "builtin", "threshold": 0.5, "min_volume_mm3": 2.0},
    }  # fmt: skip


def compare_or_die(job: PairJob) -> object:
    """In place of ``compare_pair``: as if memory ran out at the second participant."""
    if job.sessions[0].files.label.startswith("sub-02"):
        os.kill(os.getpid(), signal.SIGKILL)
    return compare_pair(job)


def compare_slowly_or_die(job: PairJob) -> object:
    """The same with pairs that take their time."""
    time.sleep(0.0 if job.sessions[0].files.label.startswith("sub-02") else 0.2)
    return compare_or_die(job)
