"""Smooth fake cords, small enough to draw in a blink."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from bids_scseg.report.records import AbsentSequence, Flag, NativeImage, SequenceView, SessionReport
from bids_scseg.space.grid import Grid

NAMES = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")
DESCRIPTIONS = {
    "T2Sag": "sagittal T2-weighted",
    "STIR": "sagittal STIR",
    "T2StarAx": "axial T2*-weighted",
    "T2Ax": "axial T2-weighted",
    "T1Sag": "sagittal T1-weighted",
    "MP2RAGE": "MP2RAGE uniform image",
}


def prepared(slices: int, *, seed: int = 0) -> np.ndarray:
    """(48, 48, K): grey cord of 5 mm radius in bright fluid, with smooth noise."""
    i, j = np.mgrid[:48, :48]
    radius = np.hypot(i - 23.5, j - 23.5) * 0.5
    slice_ = 2.0 / (1 + np.exp(-(radius - 5) * 2)) - 2.6 / (1 + np.exp(-(radius - 9)))
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(48, 48, slices)), 1.0)
    return (slice_[:, :, None] + 1.5 * noise).astype(np.float32)


def native(*, shape: tuple[int, int, int] = (12, 60, 80), seed: int = 0) -> NativeImage:
    """Sagittal stack in PSR-like order with 1 mm pixels, 3 mm slices and a slightly bent cord."""
    ras = np.zeros(shape, dtype=np.float32)
    i, j, k = np.mgrid[: shape[0], : shape[1], : shape[2]]
    bend = shape[1] / 2 + 5 * np.sin(k / 25)
    radius = np.hypot((i - (shape[0] - 1) / 2) * 3, j - bend)
    ras = 100 + 120 / (1 + np.exp(-(radius - 5))) - 180 / (1 + np.exp(-(radius - 9)))
    ras += np.random.default_rng(seed).normal(scale=4, size=shape)
    cord = radius <= 5
    cord[:, :, :6] = False
    affine = np.array([[0, 0, 3.0, -16], [-1, 0, 0, 30], [0, 1, 0, -40], [0, 0, 0, 1]])
    turned = ras.transpose(1, 2, 0)[::-1]
    grid = Grid(shape=turned.shape, affine=affine)
    at = np.arange(shape[2])
    index = np.stack(
        [shape[1] - 1 - (shape[1] / 2 + 5 * np.sin(at / 25)), at, np.full(at.size, (shape[0] - 1) / 2)],
        axis=-1,
    )
    return NativeImage(
        file="sub-01/anat/sub-01_acq-sag_T2w.nii.gz",
        image=turned,
        grid=grid,
        cord=cord.transpose(1, 2, 0)[::-1],
        centerline_ras=grid.to_world(index),
        measured=at >= 6,
    )


def view(name: str, slices: int, *, covered: tuple[float, float] = (0.0, 1.0), seed: int = 0) -> SequenceView:
    coverage = np.zeros((48, 48, slices), dtype=bool)
    coverage[:, :, int(covered[0] * slices) : int(covered[1] * slices)] = True
    image = np.where(coverage, prepared(slices, seed=seed), 0).astype(np.float32)
    k = np.arange(slices)
    offset = np.stack([0.8 * np.sin(k / 40 + seed), 1.2 * np.cos(k / 60 + seed)], axis=-1)
    return SequenceView(
        name=name,
        description=DESCRIPTIONS.get(name, ""),
        natives=(native(seed=seed),),
        prepared=image,
        coverage=coverage,
        unaligned=np.roll(image, 3, axis=1),
        offset_mm=offset,
        measured=k > slices // 10,
        examined_mm=float(coverage[0, 0].sum() * 0.5),
        extrapolated_share=0.1,
        contrasts={1: 1.8},
        cord_source="built-in finder",
        notes=("one slab",),
    )


def lesions(slices: int, count: int, *, seed: int = 1) -> np.ndarray:
    """(48, 48, K) int16: ``count`` blobs inside the cord."""
    labels = np.zeros((48, 48, slices), dtype=np.int16)
    rng = np.random.default_rng(seed)
    grid = np.mgrid[:48, :48, :slices]
    for number in range(1, count + 1):
        at = (*rng.uniform(18, 29, size=2), (number - 0.5) / count * (slices - 8) + 4)
        size = (3.0, 3.0, min(14.0, slices / (2.5 * count) + 3))
        inside = sum(((axis - c) / s) ** 2 for axis, c, s in zip(grid, at, size, strict=True)) <= 1
        labels[inside] = number
    return labels


def lesion_rows(count: int) -> tuple[dict[str, object], ...]:
    columns = ("dorsal", "lateral left", "lateral right", "ventral", "central")
    return tuple(
        {
            "index": n,
            "name": f"lesion-{n}",
            "volume_mm3": 40.0 * n,
            "length_mm": 6.0 + n,
            "column": columns[n % 5],
            "level": f"C{n % 7 + 1}",
            "mean_probability": 0.8,
        }
        for n in range(1, count + 1)
    )


@pytest.fixture(scope="session")
def make_report() -> Callable[..., SessionReport]:
    """Build a report of any size: ``make_report(sequences=2, slices=200, count=3)``."""

    def build(*, sequences: int = 2, slices: int = 120, count: int = 2, **changes: object) -> SessionReport:
        covered = [(0, 1), (0, 1), (0.6, 1), (0.5, 0.95), (0.1, 1), (0.4, 1)]
        views = tuple(
            view(name, slices, covered=covered[n], seed=n) for n, name in enumerate(NAMES[:sequences])
        )
        labels = lesions(slices, count)
        facts: dict[str, object] = {
            "label": "sub-01_ses-1",
            "dataset": "demo",
            "date": "2024-05-06",
            "sequences": views,
            "absent": tuple(
                AbsentSequence(
                    name=name, description=DESCRIPTIONS[name], handling="imputed by the mean of features"
                )
                for name in NAMES[sequences:]
            ),
            "left_out": (("sub-01/anat/sub-01_ce-gad_T1w.nii.gz", "contrast agent"),),
            "anchor": "T2Sag",
            "labels": labels,
            "probability": ndimage.gaussian_filter((labels > 0).astype(np.float32), 1.0),
            "cord": np.repeat((np.hypot(*(np.mgrid[:48, :48] - 23.5)) <= 10)[:, :, None], slices, axis=2),
            "levels": tuple(
                (f"C{n + 1}", slices - 44 - n * 34.0, slices - 10 - n * 34.0)
                for n in range(7)
                if slices - 10 - n * 34 > 0
            ),
            "lesions": lesion_rows(count),
            "measures": {"lesion_count": count, "total_volume_mm3": 40.0 * count, "load": 0.012},
            "flags": (
                Flag(severity="caution", title="Extrapolated ends", text="10 % of the windows of STIR."),
                Flag(
                    severity="serious",
                    title="Cord cut",
                    text="The cord leaves the field of view.",
                    remedy="Look.",
                ),
            ),
            "model": "cord-lesion",
            "card": "Not validated on patients.",
            "threshold": 0.5,
            "device": "cpu",
            "versions": {"bids_scseg": "0.1.0"},
            "checksums": {"weights": "ab" * 32},
            "seeds": {"run": "1"},
            "seconds": {"cord": 1.5, "segment": 8.0},
            "methods": "One paragraph.\n\nAnother.",
            "references": ("Somebody et al., 2020.",),
            "links": (("lesion table", "sub-01/anat/x_dseg.tsv"),),
        }
        return SessionReport(**{**facts, **changes})  # type: ignore[arg-type]

    return build
