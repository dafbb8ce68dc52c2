"""The session's row: totals, loads, and how much of the cord was examined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bids_scseg.measure.calibration import CERTAIN_BELOW
from bids_scseg.measure.cordcoords import slice_arc_mm
from bids_scseg.measure.extent import beyond_masks
from bids_scseg.measure.instances import CORD_FROM, Labels
from bids_scseg.measure.landmarks import VERTEBRAE, Landmarks
from bids_scseg.measure.schema import Column, Value
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray

#: Levels that hold cord: it ends at L1-L2 in adults.
CORD_LEVELS = VERTEBRAE[: VERTEBRAE.index("L2") + 1]
#: A slice is examined by a sequence that covers this share of its cord (ours).
EXAMINED_FROM = 0.5
#: Radius of the disc that stands for the cord in slices without a cord mask, about the cord's own (66 mm² at
#: C3).
CORD_RADIUS_MM = 4.5
#: Probabilities this close to the threshold are counted as uncertain (ours), unless they are sure background:
#: below 0.01, as in the calibration. A low threshold is close to zero, and all background would count.
NEAR_THRESHOLD = 0.1
#: ``mask_origin`` of lesions that nobody corrected.
MODEL_ORIGIN = "model"

SESSION_COLUMNS: tuple[Column, ...] = (
    Column(name="lesion_count", dtype="Int64", description="Number of lesions; n/a if no cord was examined."),
    Column(
        name="lesion_volume_mm3", dtype="float64", units="mm^3", description="Total volume of the lesions."
    ),
    Column(name="cord_volume_mm3", dtype="float64", units="mm^3", description="Volume of the examined cord."),
    Column(name="lesion_load", dtype="float64", description="Lesion volume divided by cord volume."),
    Column(
        name="cord_length_mm",
        dtype="float64",
        units="mm",
        description="Arc length of the centerline between the ends of the cord found, gaps included.",
    ),
    Column(
        name="examined_length_mm",
        dtype="float64",
        units="mm",
        description="Arc length of that cord where at least one sequence covers half of the cross-section.",
    ),
    Column(
        name="not_examined_mm",
        dtype="float64",
        units="mm",
        description="Arc length of that cord which no sequence covers: nothing is known about lesions there.",
    ),
    Column(
        name="beyond_masks_mm",
        dtype="float64",
        units="mm",
        description="Length along S-I that the images show above and below the ends of the cord masks, where "
        "nothing was segmented: head, what follows the conus, or cord that no mask covers; with labelled "
        "levels, from C1 to L2 only.",
    ),
    Column(
        name="near_threshold_volume_mm3",
        dtype="float64",
        units="mm^3",
        description="Volume of voxels whose probability is within 0.1 of the threshold and at least 0.01.",
    ),
    Column(
        name="near_threshold_mass",
        dtype="float64",
        description="Share of the summed lesion probability that lies in such voxels; 0 without any "
        "probability.",
    ),
    Column(
        name="mask_origin",
        dtype="str",
        description="Who decided what is lesion: model; manual: a mask that a reader corrected; mixed: such "
        "a mask where it reaches, the model beyond.",
    ),
    Column(name="threshold", dtype="float64", description="Probability from which a voxel is lesion."),
    Column(name="model", dtype="str", description="Name of the model."),
    Column(name="model_sha256", dtype="str", description="Checksum of the model's weights."),
    Column(name="version", dtype="str", description="Version of the software."),
    Column(name="anchor", dtype="str", description="Sequence that gives grid and outputs."),
    Column(name="sequences", dtype="str", description="Sequences that were there, joined by +."),
    Column(name="arc_origin", dtype="str", description="Origin of arc length."),
    Column(name="arc_origin_anatomical", dtype="boolean", description="Whether that origin is anatomical."),
    Column(
        name="levels_from",
        dtype="str",
        description="Who labelled discs or vertebrae: a derivatives folder, or the Spinal Cord Toolbox with "
        "its release; n/a without labels.",
    ),
    Column(
        name="flags",
        dtype="str",
        description="Matters to look at, separated by semicolons; n/a if there are none.",
    ),
)


def examined_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """Examined length, per sequence of the recipe."""
    return tuple(
        Column(
            name=f"{name}_examined_mm",
            dtype="float64",
            units="mm",
            description=f"Arc length of cord that {name} covers; 0 if the sequence is absent.",
        )
        for name in sequences
    )


def level_columns() -> tuple[Column, ...]:
    """Totals per vertebral level; n/a where the level is not labelled or was not examined."""
    columns: list[Column] = []
    for level in CORD_LEVELS:
        columns += [
            Column(
                name=f"{level}_lesion_count",
                dtype="Int64",
                description=f"Lesions with their centre at {level}.",
            ),
            Column(
                name=f"{level}_lesion_volume_mm3",
                dtype="float64",
                units="mm^3",
                description=f"Lesion volume at {level}.",
            ),
            Column(
                name=f"{level}_cord_volume_mm3",
                dtype="float64",
                units="mm^3",
                description=f"Examined cord volume at {level}.",
            ),
            Column(
                name=f"{level}_lesion_load",
                dtype="float64",
                description=f"Lesion volume divided by cord volume at {level}.",
            ),
        ]
    return tuple(columns)


def session_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """The whole schema of a recipe's session row."""
    return SESSION_COLUMNS + examined_columns(sequences) + level_columns()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What produced a session's numbers; ``mask_origin`` as in :data:`SESSION_COLUMNS`."""

    threshold: float
    model: str
    model_sha256: str
    version: str
    mask_origin: str = MODEL_ORIGIN


def session_row(
    lesions: pd.DataFrame,
    labels: Labels,
    probability: npt.NDArray[np.floating],
    *,
    coverage: npt.NDArray[np.bool_],
    cord: npt.NDArray[np.generic],
    geometry: Geometry,
    anchor: str,
    sequences: Sequence[str],
    landmarks: Landmarks,
    provenance: Provenance,
    flags: Sequence[str] = (),
) -> dict[str, Value]:
    """Totals of one session.

    Parameters
    ----------
    lesions
        Its lesion table.
    labels, probability, cord : (i, j, k)
        Lesion numbers, lesion probability and cord mask (0–1) in prepared space.
    coverage : (S, i, j, k) bool
        Where each sequence has data, in the order of ``sequences``.
    geometry, anchor, sequences, landmarks
        As for :func:`bids_scseg.measure.lesions.lesion_table`.
    provenance
        Threshold, model, versions.
    flags
        Matters to look at, one short sentence each.

    Returns
    -------
    One value for each of :func:`session_columns`, None where there is none. A session without lesions has
    zeros; one of which no cord was examined has None: not examined is not "no lesion".
    """
    soft = np.clip(np.asarray(cord, dtype=np.float64), 0, 1)
    arc = slice_arc_mm(geometry, anchor)
    within = cord_range(soft, coverage)
    examined = examined_slices(soft, coverage, geometry) & within
    seen = np.asarray(examined.any(axis=0))
    voxel = geometry.grid.voxel_volume
    lesion_mm3 = (labels > 0).sum(axis=(0, 1)) * voxel
    cord_mm3 = soft.sum(axis=(0, 1)) * voxel * seen
    nothing = not seen.any()
    beyond = beyond_masks(geometry, soft, levels=landmarks.ranges)
    return {
        "lesion_count": None if nothing else len(lesions),
        "lesion_volume_mm3": None if nothing else float(lesion_mm3.sum()),
        "cord_volume_mm3": float(cord_mm3.sum()),
        "lesion_load": None if nothing else _ratio(lesion_mm3.sum(), cord_mm3.sum()),
        "cord_length_mm": float(arc[within].sum()),
        "examined_length_mm": float(arc[seen].sum()),
        "not_examined_mm": float(arc[within & ~seen].sum()),
        "beyond_masks_mm": beyond[0].mm if beyond else None,
        **_near_threshold(probability, provenance.threshold, voxel),
        "mask_origin": provenance.mask_origin,
        "threshold": provenance.threshold,
        "model": provenance.model,
        "model_sha256": provenance.model_sha256,
        "version": provenance.version,
        "anchor": anchor,
        "sequences": "+".join(n for n, c in zip(sequences, coverage, strict=True) if c.any()) or None,
        "arc_origin": landmarks.kind,
        "arc_origin_anatomical": landmarks.anatomical,
        "levels_from": landmarks.source or None,
        "flags": "; ".join(flags) or None,
        **{f"{n}_examined_mm": float(arc[e].sum()) for n, e in zip(sequences, examined, strict=True)},
        **_per_level(lesions, landmarks, geometry.s_mm, seen, lesion_mm3, cord_mm3),
    }


def cord_range(cord: npt.NDArray[np.floating], coverage: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(k,) bool: slices between the ends of the cord mask, gaps included.

    Without any mask, between the ends of what is covered.
    """
    has = (cord >= CORD_FROM).any(axis=(0, 1))
    if not has.any():
        has = coverage.any(axis=(0, 1, 2))
    found = np.flatnonzero(has)
    inside = np.zeros(has.size, bool)
    if found.size:
        inside[found[0] : found[-1] + 1] = True
    return inside


def examined_slices(
    cord: npt.NDArray[np.floating], coverage: npt.NDArray[np.bool_], geometry: Geometry
) -> npt.NDArray[np.bool_]:
    """(S, k) bool: slices in which a sequence covers at least half of the cord.

    Where a slice has no cord mask, a disc of the cord's usual size round the centerline stands for it.
    """
    mask = cord >= CORD_FROM
    right, front, _ = (
        (np.arange(size) - (size - 1) / 2) * step
        for size, step in zip(geometry.grid.shape, geometry.grid.spacing, strict=True)
    )
    disc = np.hypot(right[:, None], front[None, :]) <= CORD_RADIUS_MM
    region = np.where(mask.any(axis=(0, 1)), mask, disc[:, :, None])
    share = (coverage & region).sum(axis=(1, 2)) / region.sum(axis=(0, 1))
    return np.asarray(share >= EXAMINED_FROM)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _near_threshold(
    probability: npt.NDArray[np.floating], threshold: float, voxel: float
) -> dict[str, Value]:
    near = (np.abs(probability - threshold) <= NEAR_THRESHOLD) & (probability >= CERTAIN_BELOW)
    total = float(probability.sum(dtype=np.float64))
    mass = float(probability[near].sum(dtype=np.float64))
    return {
        "near_threshold_volume_mm3": float(near.sum() * voxel),
        "near_threshold_mass": mass / total if total > 0 else 0.0,
    }


def _per_level(
    lesions: pd.DataFrame,
    landmarks: Landmarks,
    s_mm: FloatArray,
    seen: npt.NDArray[np.bool_],
    lesion_mm3: FloatArray,
    cord_mm3: FloatArray,
) -> dict[str, Value]:
    row: dict[str, Value] = {column.name: None for column in level_columns()}
    for level in landmarks.levels:
        here = (s_mm >= level.bottom_s_mm) & (s_mm < level.top_s_mm)
        if level.name not in CORD_LEVELS or not (seen & here).any():
            continue
        volume, cord = float(lesion_mm3[here].sum()), float(cord_mm3[here].sum())
        row[f"{level.name}_lesion_count"] = int((lesions["level"] == level.name).sum())
        row[f"{level.name}_lesion_volume_mm3"] = volume
        row[f"{level.name}_cord_volume_mm3"] = cord
        row[f"{level.name}_lesion_load"] = _ratio(volume, cord)
    return row
