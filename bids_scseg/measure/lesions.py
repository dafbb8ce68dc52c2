"""The lesion table: one row per lesion, measured in prepared space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from bids_scseg.measure.cordcoords import (
    CordPoints,
    centerline_of,
    cord_column,
    cord_coordinates,
    sample_sections,
    section_index,
    slice_arc_mm,
)
from bids_scseg.measure.extent import cut_lesions
from bids_scseg.measure.instances import CORD_FROM, Labels
from bids_scseg.measure.landmarks import Landmarks
from bids_scseg.measure.schema import Column, Value, to_frame
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray

#: Cross-sections with less cord are slivers at the end of a mask; the cord has 20 mm² and more above the
#: conus.
MIN_CORD_AREA_MM2 = 10.0
#: Reach of the surrounding cord to which a lesion is compared, beyond its ends along the cord
#: (specification).
SURROUNDING_MM = 10.0
#: Fewest voxels for a mean of the surrounding cord (ours: one 2.5 mm cube of 0.5 mm voxels).
MIN_SURROUNDING = 125
#: Step in which tissue bridges are read off the midsagittal plane.
BRIDGE_STEP_MM = 0.1

LESION_COLUMNS: tuple[Column, ...] = (
    Column(
        name="index",
        dtype="Int64",
        description="Number of the lesion in the label images, from top to bottom.",
    ),
    Column(name="name", dtype="str", description="Name of the lesion."),
    Column(
        name="volume_mm3",
        dtype="float64",
        units="mm^3",
        description="Voxels in prepared space times their volume.",
    ),
    Column(
        name="length_mm",
        dtype="float64",
        units="mm",
        description="Extent along the cord: arc length of the anchor's centerline between the perpendicular "
        "planes at "
        "the lesion's ends.",
    ),
    Column(
        name="max_equivalent_diameter_mm",
        dtype="float64",
        units="mm",
        description="Diameter of the circle with the area of the largest cross-section perpendicular to the "
        "cord.",
    ),
    Column(
        name="centre_x_mm", dtype="float64", units="mm", description="Centroid, world Right, anchor's space."
    ),
    Column(
        name="centre_y_mm",
        dtype="float64",
        units="mm",
        description="Centroid, world Anterior, anchor's space.",
    ),
    Column(
        name="centre_z_mm",
        dtype="float64",
        units="mm",
        description="Centroid, world Superior, anchor's space.",
    ),
    Column(
        name="arc_length_mm",
        dtype="float64",
        units="mm",
        description="Centroid's distance along the anchor's centerline from the origin, positive downwards.",
    ),
    Column(
        name="arc_origin",
        dtype="str",
        description="Origin of arc length: C2-C3 disc, pontomedullary junction, or the top of the prepared "
        "cord (uppermost cord mask and margin).",
    ),
    Column(
        name="arc_origin_anatomical",
        dtype="boolean",
        description="Whether that origin is anatomical; if not, arc length must not be compared between "
        "subjects or "
        "sessions.",
    ),
    Column(
        name="radius_mm", dtype="float64", units="mm", description="Centroid's distance from the centerline."
    ),
    Column(
        name="radius_normalised",
        dtype="float64",
        description="The same relative to the cord's elliptic cross-section: 0 centre, 1 surface; n/a "
        "without cord.",
    ),
    Column(
        name="angle_deg",
        dtype="float64",
        units="degree",
        description="Direction of the centroid across the cord: 0 ventral, 90 right, 180 dorsal, -90 left "
        "(patient's).",
    ),
    Column(
        name="column",
        dtype="str",
        description="Column of the cord: dorsal, lateral left, lateral right, ventral or central; quarters "
        "of the cord "
        "scaled to a circle, central below 0.3 of its radius; n/a without cord.",
    ),
    Column(
        name="level",
        dtype="str",
        description="Vertebral level of the centroid's foot on the centerline; n/a without labels.",
    ),
    Column(
        name="level_approximate",
        dtype="boolean",
        description="Whether a border of that level was interpolated or continued rather than labelled.",
    ),
    Column(
        name="levels_from",
        dtype="str",
        description="Who labelled discs or vertebrae: a derivatives folder, or the Spinal Cord Toolbox with "
        "its release; n/a without labels.",
    ),
    Column(
        name="max_axial_damage_ratio",
        dtype="float64",
        description="Largest share of the cord's area that is lesion, over cross-sections perpendicular to "
        "the cord; "
        "n/a without cord.",
    ),
    Column(
        name="dorsal_bridge_mm",
        dtype="float64",
        units="mm",
        description="Narrowest spared tissue between lesion and dorsal cord surface in the midsagittal "
        "plane, "
        "perpendicular to the cord; n/a if the lesion does not reach that plane.",
    ),
    Column(
        name="ventral_bridge_mm",
        dtype="float64",
        units="mm",
        description="The same towards the ventral surface.",
    ),
    Column(
        name="in_cord_fraction",
        dtype="float64",
        description="Share of the lesion's volume inside the cord mask; n/a where its slices have no cord.",
    ),
    Column(
        name="at_mask_end",
        dtype="boolean",
        description="Whether the lesion reaches the plane where the cord masks end: it is cut there, what "
        "goes on beyond is not counted.",
    ),
    Column(
        name="mean_probability",
        dtype="float64",
        description="Mean of the lesion probability over its voxels.",
    ),
    Column(
        name="max_probability", dtype="float64", description="Largest lesion probability among its voxels."
    ),
)


def sequence_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """Columns that repeat for each sequence of the recipe."""
    columns: list[Column] = []
    for name in sequences:
        columns += [
            Column(
                name=f"{name}_covered_fraction",
                dtype="float64",
                description=f"Share of the lesion's voxels that {name} covers; 0 if the sequence is absent.",
            ),
            Column(
                name=f"{name}_contrast",
                dtype="float64",
                description=f"Mean {name} signal of the lesion minus that of the lesion-free cord within "
                "10 mm of its ends, in units of the prepared image (the spread of the cord or of the "
                "window, as the model's recipe says); n/a where either is not covered.",
            ),
            Column(
                name=f"{name}_cnr",
                dtype="float64",
                description="Absolute contrast divided by the standard deviation of that surrounding cord.",
            ),
        ]
    return tuple(columns)


def lesion_columns(sequences: Sequence[str]) -> tuple[Column, ...]:
    """The whole schema of a recipe's lesion table."""
    return LESION_COLUMNS + sequence_columns(sequences)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Maps:
    """What the lesions of one session are measured on; arrays in prepared space."""

    labels: Labels
    probability: npt.NDArray[np.floating]
    image: npt.NDArray[np.floating]
    coverage: npt.NDArray[np.bool_]
    cord: npt.NDArray[np.float32]
    near_lesion: npt.NDArray[np.bool_]
    geometry: Geometry
    anchor: str
    landmarks: Landmarks
    sequences: tuple[str, ...]
    cut: tuple[int, ...]


def lesion_table(
    labels: Labels,
    probability: npt.NDArray[np.floating],
    *,
    image: npt.NDArray[np.floating],
    coverage: npt.NDArray[np.bool_],
    cord: npt.NDArray[np.generic],
    geometry: Geometry,
    anchor: str,
    sequences: Sequence[str],
    landmarks: Landmarks,
) -> pd.DataFrame:
    """Measure every lesion.

    Parameters
    ----------
    labels : (i, j, k) int32
        Lesion numbers 1, 2, … (:func:`bids_scseg.measure.instances.label_lesions`).
    probability : (i, j, k) float
        Lesion probability.
    image : (S, i, j, k) float
        Prepared images in the order of ``sequences``.
    coverage : (S, i, j, k) bool
        Where each has data.
    cord : (i, j, k) float or bool
        Cord mask, 0–1. All zero where unknown.
    geometry, anchor
        The map, and the sequence in whose prepared space all this is.
    sequences
        Names of the recipe's sequences.
    landmarks
        Origin and levels.

    Returns
    -------
    Frame with the columns of :func:`lesion_columns`, one row per lesion in order of number; no rows, same
    types, without lesions.
    """
    maps = _Maps(
        labels=labels,
        probability=probability,
        image=image,
        coverage=coverage,
        cord=np.clip(np.asarray(cord, dtype=np.float32), 0, 1),
        near_lesion=_grown(labels),
        geometry=geometry,
        anchor=anchor,
        landmarks=landmarks,
        sequences=tuple(sequences),
        cut=cut_lesions(labels, cord),
    )
    where = np.argwhere(labels > 0)
    numbers = labels[tuple(where.T)]
    rows = [_row(maps, int(number), where[numbers == number]) for number in np.unique(numbers)]
    return to_frame(rows, lesion_columns(sequences))


def _grown(labels: Labels) -> npt.NDArray[np.bool_]:
    """Lesions and a voxel round them, which partial volume may have touched."""
    return np.asarray(ndimage.binary_dilation(labels > 0, structure=np.ones((3, 3, 3))))


def _row(maps: _Maps, number: int, voxels: npt.NDArray[np.intp]) -> dict[str, Value]:
    points = cord_coordinates(voxels, maps.geometry, key=maps.anchor)
    values = maps.probability[tuple(voxels.T)]
    return {
        "index": number,
        "name": f"lesion-{number:02d}",
        "volume_mm3": len(voxels) * maps.geometry.grid.voxel_volume,
        "length_mm": _length(maps, points),
        "in_cord_fraction": _in_cord(maps, voxels),
        "at_mask_end": number in maps.cut,
        "mean_probability": float(values.mean()),
        "max_probability": float(values.max()),
        **_sections(maps, number, points),
        **_place(maps, voxels, points),
        **_signal(maps, voxels),
    }


def _length(maps: _Maps, points: CordPoints) -> float:
    """Arc length between the ends: from centre to centre plus a voxel's own extent along the cord."""
    line = centerline_of(maps.geometry, maps.anchor)
    low, high = points.s_mm.min(), points.s_mm.max()
    voxel = maps.geometry.grid.spacing[2] * float(line.tangent((low + high) / 2)[0, 2])
    ends = line.arc_length([low, high])
    return float(ends[1] - ends[0] + voxel)


def _in_cord(maps: _Maps, voxels: npt.NDArray[np.intp]) -> float:
    slices = np.unique(voxels[:, 2])
    known = maps.cord[:, :, slices].max(initial=0.0) >= CORD_FROM
    return float(maps.cord[tuple(voxels.T)].mean()) if known else float("nan")


def _place(maps: _Maps, voxels: npt.NDArray[np.intp], points: CordPoints) -> dict[str, Value]:
    """Centre in the world, along the cord and across it (the column comes with the cross-sections)."""
    world = maps.geometry.to_world(voxels, key=maps.anchor).mean(axis=0)
    line = centerline_of(maps.geometry, maps.anchor)
    s, u, v = (float(array.mean()) for array in (points.s_mm, points.u_mm, points.v_mm))
    origin = line.arc_length(maps.landmarks.origin_s_mm)[0]
    level = maps.landmarks.find(s)
    return {
        "centre_x_mm": float(world[0]),
        "centre_y_mm": float(world[1]),
        "centre_z_mm": float(world[2]),
        "arc_length_mm": float(origin - line.arc_length(s)[0]),
        "arc_origin": maps.landmarks.kind,
        "arc_origin_anatomical": maps.landmarks.anatomical,
        "radius_mm": float(np.hypot(u, v)),
        "angle_deg": float(np.degrees(np.arctan2(u, v))),
        "level": None if level is None else level.name,
        "level_approximate": None if level is None else level.approximate,
        "levels_from": maps.landmarks.source or None,
    }


def _sections(maps: _Maps, number: int, points: CordPoints) -> dict[str, Value]:
    """What is read off planes perpendicular to the cord, one grid step apart, along the lesion."""
    grid = maps.geometry.grid
    step = float(grid.spacing[0])
    s = np.arange(points.s_mm.min(), points.s_mm.max() + grid.spacing[2] / 2, grid.spacing[2])
    u, v = (_centred(grid.shape[axis], step) for axis in (0, 1))
    index = section_index(s, maps.geometry, key=maps.anchor, u=u, v=v)
    lesion = sample_sections(maps.labels == number, index)
    cord = sample_sections(maps.cord, index)
    area, cord_area = (volume.sum(axis=(1, 2)) * step**2 for volume in (lesion, cord))
    enough = cord_area >= MIN_CORD_AREA_MM2
    both = np.minimum(lesion, cord).sum(axis=(1, 2)) * step**2
    half_u, half_v = _half_axes(cord[enough], u, v)
    centre = float(points.u_mm.mean()), float(points.v_mm.mean())
    radius = np.hypot(centre[0] / half_u, centre[1] / half_v)
    return {
        "max_equivalent_diameter_mm": float(2 * np.sqrt(area.max() / np.pi)),
        "max_axial_damage_ratio": float((both[enough] / cord_area[enough]).max()) if enough.any() else None,
        "radius_normalised": float(radius),
        "column": cord_column(*centre, half_u_mm=half_u, half_v_mm=half_v),
        **_bridges(maps, number, s[enough]),
    }


def _centred(size: int, step: float) -> FloatArray:
    return np.asarray((np.arange(size) - (size - 1) / 2) * step)


def _half_axes(cord: npt.NDArray[np.float32], u: FloatArray, v: FloatArray) -> tuple[float, float]:
    """Half-axes of the ellipse with the cord's second moments (half-axis = 2 standard deviations)."""
    if cord.shape[0] == 0:
        return float("nan"), float("nan")
    halves = []
    for weight, at in ((cord.sum(axis=(0, 2)), u), (cord.sum(axis=(0, 1)), v)):
        mean = np.average(at, weights=weight)
        halves.append(2 * float(np.sqrt(np.average((at - mean) ** 2, weights=weight))))
    return halves[0], halves[1]


def _bridges(maps: _Maps, number: int, s_mm: FloatArray) -> dict[str, Value]:
    """Spared tissue dorsal and ventral of the lesion in the midsagittal plane, at its narrowest."""
    reach = maps.geometry.grid.shape[1] * float(maps.geometry.grid.spacing[1]) / 2
    v: FloatArray = np.arange(-reach, reach + BRIDGE_STEP_MM / 2, BRIDGE_STEP_MM, dtype=np.float64)
    if s_mm.size == 0:
        return {"dorsal_bridge_mm": None, "ventral_bridge_mm": None}
    index = section_index(s_mm, maps.geometry, key=maps.anchor, u=np.zeros(1), v=v)
    lesion = sample_sections(maps.labels == number, index)[:, 0] >= 0.5
    cord = sample_sections(maps.cord, index)[:, 0] >= CORD_FROM
    crossed = lesion.any(axis=1) & cord.any(axis=1)
    if not crossed.any():
        return {"dorsal_bridge_mm": None, "ventral_bridge_mm": None}
    lesion, cord = lesion[crossed], cord[crossed]
    dorsal = lesion.argmax(axis=1) - cord.argmax(axis=1)
    ventral = lesion[:, ::-1].argmax(axis=1) - cord[:, ::-1].argmax(axis=1)
    return {
        "dorsal_bridge_mm": float(max(dorsal.min(), 0) * BRIDGE_STEP_MM),
        "ventral_bridge_mm": float(max(ventral.min(), 0) * BRIDGE_STEP_MM),
    }


def _signal(maps: _Maps, voxels: npt.NDArray[np.intp]) -> dict[str, Value]:
    """Coverage, contrast and contrast-to-noise of a lesion in each sequence."""
    slices = _surrounding_slices(maps, voxels)
    around = (maps.cord[:, :, slices] >= CORD_FROM) & ~maps.near_lesion[:, :, slices]
    row: dict[str, Value] = {}
    for channel, name in enumerate(maps.sequences):
        covered = maps.coverage[channel][tuple(voxels.T)]
        inside = maps.image[channel][tuple(voxels.T)][covered]
        outside = maps.image[channel][:, :, slices][around & maps.coverage[channel][:, :, slices]]
        row[f"{name}_covered_fraction"] = float(covered.mean())
        row |= _contrast(name, inside.astype(np.float64), outside.astype(np.float64))
    return row


def _surrounding_slices(maps: _Maps, voxels: npt.NDArray[np.intp]) -> slice:
    centre = np.cumsum(slice_arc_mm(maps.geometry, maps.anchor))
    low, high = centre[voxels[:, 2].min()] - SURROUNDING_MM, centre[voxels[:, 2].max()] + SURROUNDING_MM
    return slice(int(np.searchsorted(centre, low)), int(np.searchsorted(centre, high, side="right")))


def _contrast(name: str, inside: FloatArray, outside: FloatArray) -> dict[str, Value]:
    if inside.size == 0 or outside.size < MIN_SURROUNDING:
        return {f"{name}_contrast": None, f"{name}_cnr": None}
    contrast, noise = float(inside.mean() - outside.mean()), float(outside.std())
    return {f"{name}_contrast": contrast, f"{name}_cnr": abs(contrast) / noise if noise > 0 else None}
