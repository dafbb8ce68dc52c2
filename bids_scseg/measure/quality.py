"""How far a session's images and masks can be trusted: numbers for the quality control of a cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.measure.cordcoords import slice_arc_mm
from bids_scseg.measure.instances import CORD_FROM, Labels
from bids_scseg.measure.schema import Column, Dtype, Value
from bids_scseg.recipe.study import Plan
from bids_scseg.space.geometry import Geometry

BoolArray = npt.NDArray[np.bool_]

#: Noise is what is left of the cord's signal without everything smoother than this (ours: three voxels).
NOISE_SIGMA_MM = 1.5
#: The cord's surroundings: from here to there outside its mask, beyond partial volume (ours: mostly fluid).
RING_MM = (1.0, 3.0)
#: Median absolute deviation to standard deviation, normal distribution.
MAD_TO_SIGMA = 1.4826
#: Fewest voxels for a mean or a spread (ours: one 2.5 mm cube of 0.5 mm voxels).
MIN_VOXELS = 125
#: The cord's area is compared to its median over about two vertebrae (ours).
AREA_REACH_MM = 20.0
#: Relative deviation from which a slice's area is odd: beyond any enlargement of the healthy cord (ours).
AREA_ODD_FROM = 0.3

SCANNER_COLUMNS: tuple[Column, ...] = (
    Column(
        name="manufacturer", dtype="str", description="Manufacturer of the scanner (sidecar of the anchor)."
    ),
    Column(name="scanner_model", dtype="str", description="Model of the scanner (sidecar of the anchor)."),
    Column(
        name="field_strength_t",
        dtype="float64",
        units="T",
        description="Field strength of the scanner (sidecar of the anchor).",
    ),
)
CORD_COLUMNS: tuple[Column, ...] = (
    Column(
        name="cord_area_mm2",
        dtype="float64",
        units="mm^2",
        description="Area of the cord mask in axial slices, median.",
    ),
    Column(
        name="cord_area_odd_mm",
        dtype="float64",
        units="mm",
        description="Length of cord whose mask is 30 % larger or smaller than its median within 20 mm.",
    ),
)


#: What repeats per sequence: ending of the column, type, unit, description.
PER_SEQUENCE: tuple[tuple[str, Dtype, str, str], ...] = (
    ("cord_contrast", "float64", "",
     "Mean signal of the lesion-free cord minus that of the 1-3 mm round it, in prepared units."),
    ("cord_noise", "float64", "",
     "Spread of the signal in the lesion-free cord round its mean within 1.5 mm, in the same units."),
    ("cord_cnr", "float64", "",
     "Absolute contrast between cord and surroundings divided by that noise."),
    ("coverage", "float64", "", "Share of the cord found in the session that the sequence covers."),
    ("centerline_residual_mm", "float64", "mm",
     "Median distance of the cord's centres in the slices from the fitted centerline."),
    ("extrapolated_mm", "float64", "mm",
     "Length over which the centerline was not seen in the sequence itself."),
    ("seam_mismatch_mm", "float64", "mm", "How far apart neighbouring slabs put the cord; the worst seam."),
    ("edge_share", "float64", "",
     "Share of the cord's slices that reach the side of the field of view; the worst image."),
    ("voxel_mm", "str", "", "Voxel size as acquired, from the smallest side to the largest."),
    ("voxel_mm3", "float64", "mm^3", "Voxel volume as acquired."),
)  # fmt: skip


def sequence_quality_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """Quality columns that repeat for each sequence of the recipe; n/a where the sequence is absent."""
    return tuple(
        Column(name=f"{name}_{ending}", dtype=dtype, units=units, description=f"{name}: {text}")
        for name in sequences
        for ending, dtype, units, text in PER_SEQUENCE
    )


def quality_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """All columns of :func:`quality_row` and :func:`scanner_row`."""
    return SCANNER_COLUMNS + CORD_COLUMNS + sequence_quality_columns(sequences)


def quality_row(
    image: npt.NDArray[np.floating],
    labels: Labels,
    *,
    coverage: BoolArray,
    cord: npt.NDArray[np.generic],
    geometry: Geometry,
    sequences: Sequence[str],
    fit: Mapping[str, object],
    measures: Mapping[str, object],
) -> dict[str, Value]:
    """Quality of one session.

    Parameters
    ----------
    image, coverage : (S, i, j, k)
        Prepared images and where they have data, in the order of ``sequences``.
    labels, cord : (i, j, k)
        Lesion numbers; cord mask (0–1).
    geometry
        The map; its anchor's centerline gives lengths.
    sequences
        Names of the recipe's sequences.
    fit
        Fit report as plain data: ``sequences`` with ``name``, ``residual_mm``, ``covered_mm``,
        ``extrapolated_share``, ``seam_mm``, ``edge_share``.
    measures
        The session's row; ``cord_length_mm`` and ``<sequence>_examined_mm`` are read.

    Returns
    -------
    One value for each of :data:`CORD_COLUMNS` and :func:`sequence_quality_columns` but the voxel sizes; None
    where it is not known.
    """
    mask = np.asarray(cord, dtype=np.float32) >= CORD_FROM
    core, ring = _regions(mask, labels, geometry.grid.spacing[0])
    fitted = {str(item.get("name")): item for item in _mappings(fit.get("sequences"))}
    row: dict[str, Value] = dict(_areas(mask, geometry))
    for channel, name in enumerate(sequences):
        covered = coverage[channel]
        signal = _signal(image[channel], core & covered, ring & covered, geometry.grid.spacing[0])
        row |= {f"{name}_{key}": value for key, value in signal.items()}
        length, seen = _number(measures.get("cord_length_mm")), _number(measures.get(f"{name}_examined_mm"))
        there = bool(covered.any())
        row[f"{name}_coverage"] = seen / length if there and length and seen is not None else None
        row |= {f"{name}_{key}": value for key, value in _fit(fitted.get(name, {})).items()}
    return row


def scanner_row(plan: Plan) -> dict[str, Value]:
    """Scanner and voxel sizes of a session's images, from headers and sidecars; None where unknown."""
    sidecar: dict[str, object] = {}
    row: dict[str, Value] = {}
    for sequence in plan.sequences:
        if sequence.name == plan.anchor:
            sidecar = dict(sequence.files[0].sidecar)
        grid = sequence.files[0].grid
        if grid is not None:
            sides = sorted(float(side) for side in grid.spacing)
            row[f"{sequence.name}_voxel_mm"] = " x ".join(f"{side:.3g}" for side in sides)
            row[f"{sequence.name}_voxel_mm3"] = math.prod(sides)
    return {
        "manufacturer": _text(sidecar.get("Manufacturer")),
        "scanner_model": _text(sidecar.get("ManufacturersModelName")),
        "field_strength_t": _number(sidecar.get("MagneticFieldStrength")),
        **row,
    }


def _regions(mask: BoolArray, labels: Labels, step_mm: float) -> tuple[BoolArray, BoolArray]:
    """Lesion-free cord without its rim, and what lies round the cord in the same axial slices."""
    cross = ndimage.generate_binary_structure(2, 1)[:, :, None]

    def grown(millimetres: float) -> BoolArray:
        steps = max(round(millimetres / step_mm), 1)
        return np.asarray(ndimage.binary_dilation(mask, structure=cross, iterations=steps))

    near_lesion = ndimage.binary_dilation(labels > 0, structure=np.ones((3, 3, 3)))
    core = ndimage.binary_erosion(mask, structure=cross) & ~near_lesion
    ring = grown(RING_MM[1]) & ~grown(RING_MM[0]) & ~near_lesion
    return np.asarray(core), np.asarray(ring)


def _signal(
    image: npt.NDArray[np.floating], core: BoolArray, ring: BoolArray, step_mm: float
) -> dict[str, Value]:
    if core.sum() < MIN_VOXELS or ring.sum() < MIN_VOXELS:
        return {"cord_contrast": None, "cord_noise": None, "cord_cnr": None}
    box = ndimage.find_objects(core.astype(np.int8))[0]
    inside, signal = core[box], np.where(core[box], image[box], 0).astype(np.float32)
    sigma = NOISE_SIGMA_MM / step_mm
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(signal, sigma)[inside] / np.maximum(weight[inside], 1e-6)
    noise = MAD_TO_SIGMA * float(np.median(np.abs(signal[inside] - smooth)))
    contrast = float(image[core].mean(dtype=np.float64) - image[ring].mean(dtype=np.float64))
    ratio = abs(contrast) / noise if noise > 0 else None
    return {"cord_contrast": contrast, "cord_noise": noise, "cord_cnr": ratio}


def _areas(mask: BoolArray, geometry: Geometry) -> dict[str, Value]:
    """Area of the cord mask along the cord, and how much of it does not fit its neighbourhood."""
    spacing = geometry.grid.spacing
    area = mask.sum(axis=(0, 1)) * float(spacing[0] * spacing[1])
    has = np.flatnonzero(area > 0)
    if not has.size:
        return {"cord_area_mm2": None, "cord_area_odd_mm": None}
    inner = has[1:-1]  # the outermost slices of a mask are slivers as a rule
    reach = max(round(AREA_REACH_MM / float(spacing[2])), 1)
    usual = np.array([np.median(area[has[np.abs(has - k) <= reach]]) for k in inner])
    odd = inner[np.abs(area[inner] - usual) > AREA_ODD_FROM * usual]
    arc = slice_arc_mm(geometry, geometry.anchor)
    return {"cord_area_mm2": float(np.median(area[has])), "cord_area_odd_mm": float(arc[odd].sum())}


def _fit(report: Mapping[str, object]) -> dict[str, Value]:
    covered, share = _number(report.get("covered_mm")), _number(report.get("extrapolated_share"))
    return {
        "centerline_residual_mm": _number(report.get("residual_mm")),
        "extrapolated_mm": None if covered is None or share is None else covered * share,
        "seam_mismatch_mm": _worst(report.get("seam_mm")),
        "edge_share": _worst(report.get("edge_share")),
    }


def _worst(values: object) -> float | None:
    known = [number for value in _items(values) if (number := _number(value)) is not None]
    return max(known, default=None)


def _items(values: object) -> Iterable[object]:
    return values if isinstance(values, list | tuple) else ()


def _mappings(values: object) -> list[Mapping[str, object]]:
    return [item for item in _items(values) if isinstance(item, Mapping)]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str | None:
    return None if value is None or not str(value).strip() else " ".join(str(value).split())
