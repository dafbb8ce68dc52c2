"""Figures of a session that are not strips: native mosaics, lesions close up, the map along the cord.

Every function takes arrays and gives a matplotlib ``Figure``; files and encodings are others' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bids_scseg.report import canvas as cv
from bids_scseg.report import display
from bids_scseg.report.records import BoolArray, Labels, NativeImage, SequenceView
from bids_scseg.report.strips import Levels, draw_levels, mm_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAGITTAL_TILES = 3
SAGITTAL_HEIGHT_IN = 4.3
SAGITTAL_MAX_SCALE = 0.05  # inches per mm
SAGITTAL_WIDTH_IN = 5.0  # of all sagittal tiles together
SAGITTAL_AROUND_MM = 28.0  # shown in front of and behind the cord
AXIAL_HALF_MM = 20.0
AXIAL_TILE_IN = 1.42
AXIAL_MAX_ROWS = 3
TILE_GAP_IN = 0.06
LESION_TILE_IN = 1.72
LESION_SIDE_MAX_IN = 2.3
LESION_MARGIN_MM = 8.0
COLUMNS = ("dorsal", "lateral left", "lateral right", "ventral", "central")
COLUMN_COLORS = {
    "dorsal": cv.BLUE,
    "lateral left": cv.ORANGE,
    "lateral right": cv.VERMILION,
    "ventral": cv.GREEN,
    "central": cv.PURPLE,
}
ELSEWHERE = "not assigned"


def native_mosaic(native: NativeImage) -> Figure:
    """Sagittal and axial slices of one image in its own grid, with cord outline and centerline.

    Radiological display: the patient's right on the viewer's left in axial slices, anterior on the left
    in sagittal ones. Images without a mask are shown round the centerline, else round their middle.
    """
    view = display.canonical(native)
    window = display.grey_window(view.image)
    low, high = _around(view)
    size_mm = view.image.shape * view.spacing
    wide_mm = (high - low) * view.spacing[1]
    picks = display.sagittal_indices(view, SAGITTAL_TILES)
    scale = min(SAGITTAL_HEIGHT_IN / size_mm[2], SAGITTAL_MAX_SCALE, SAGITTAL_WIDTH_IN / len(picks) / wide_mm)
    tile_w, tile_h = wide_mm * scale, size_mm[2] * scale
    left = len(picks) * (tile_w + TILE_GAP_IN) + 0.3
    columns = max(round((cv.WIDTH_IN - left) / (AXIAL_TILE_IN + TILE_GAP_IN)), 1)
    tile = (cv.WIDTH_IN - left) / columns - TILE_GAP_IN
    rows = int(np.clip(max(tile_h, 3.0) / (tile + TILE_GAP_IN), 1, AXIAL_MAX_ROWS))
    heights = display.spread(*display.cord_range(view, 2), columns * rows)[::-1]
    rows = -(-len(heights) // columns)
    with cv.styled():
        page = cv.new_canvas(cv.WIDTH_IN, max(tile_h, rows * (tile + TILE_GAP_IN)) + 0.02)
        for order, index in enumerate(picks):
            axes = page.axes(order * (tile_w + TILE_GAP_IN), 0, tile_w, tile_h)
            _sagittal_tile(
                axes, view, index, (low, high), window=window, heights=heights if order == 0 else ()
            )
        for order, k in enumerate(heights):
            row, column = divmod(order, columns)
            x, y = left + column * (tile + TILE_GAP_IN), row * (tile + TILE_GAP_IN)
            axes = page.axes(x, y, tile, tile)
            _axial_tile(axes, view, k, number=order + 1)
    return page.figure


def _around(view: display.Canonical) -> tuple[int, int]:
    """Half-open A-P index range round the cord that sagittal tiles show."""
    margin = int(np.ceil(SAGITTAL_AROUND_MM / view.spacing[1]))
    low, high = display.cord_range(view, 1)
    size = view.image.shape[1]
    if view.cord is None and not view.line.size:
        low = high = size // 2
    return max(low - margin, 0), min(high + margin + 1, size)


def _sagittal_tile(
    axes: Axes,
    view: display.Canonical,
    index: int,
    crop: tuple[int, int],
    *,
    window: tuple[float, float],
    heights: Sequence[int],
) -> None:
    low, high = crop
    cv.show(axes, view.image[index, low:high], window)
    if view.cord is not None:
        cv.outline(axes, view.cord[index, low:high], color=cv.CORD, width=0.8)
    if view.line.size:
        along, up = view.line[:, 1] - low, view.line[:, 2]
        axes.plot(
            along, up, color=cv.CENTERLINE, linewidth=0.6, linestyle=(0, (1, 2)), scalex=False, scaley=False
        )
        seen = np.where(view.measured, along, np.nan)
        axes.plot(seen, up, color=cv.CENTERLINE, linewidth=0.9, scalex=False, scaley=False)
    for number, k in enumerate(heights, start=1):
        if number == 1 or number == len(heights) or number % 2 == 0:
            axes.annotate(
                str(number),
                (1.0, (k + 0.5) / view.image.shape[2]),
                xycoords="axes fraction",
                fontsize=5.5,
                color="white",
                ha="right",
                va="center",
                path_effects=cv.halo(),
            )
    axes.set_aspect("auto")
    cv.compass(axes, left="A", right="" if heights else "P", top="S", bottom="I")


def _axial_tile(axes: Axes, view: display.Canonical, k: int, *, number: int) -> None:
    centre = display.slice_centre(view, k)
    half = AXIAL_HALF_MM / view.spacing[:2]
    near = [slice(max(int(c - h), 0), max(int(c + h) + 1, 1)) for c, h in zip(centre, half, strict=True)]
    cv.show(axes, view.image[:, :, k], display.grey_window(view.image[near[0], near[1], k]))
    if view.cord is not None:
        cv.outline(axes, view.cord[:, :, k], color=cv.CORD, width=0.9)
    if view.line.size:
        nearest = int(np.argmin(np.abs(view.line[:, 2] - k)))
        axes.plot(*view.line[nearest, :2], marker="+", markersize=5, color=cv.CENTERLINE, markeredgewidth=0.8)
    axes.set_xlim(centre[0] + half[0], centre[0] - half[0])
    axes.set_ylim(centre[1] - half[1], centre[1] + half[1])
    axes.set_facecolor("black")
    below = (view.image.shape[2] - 1 - k) * view.spacing[2]
    cv.corner(axes, f"{number}  ·  {below:.0f} mm", at=(0.03, 0.97))
    cv.compass(axes, left="R", right="L", top="A", bottom="P")


def lesion_panel(
    extent: display.Extent,
    views: Sequence[SequenceView],
    labels: Labels,
    *,
    spacing_mm: float,
    cord: BoolArray | None = None,
) -> Figure:
    """One lesion close up: axial above, sagittal below, through its centre, in every sequence used."""
    centre = _centre_inside(extent, labels)
    first, last = _side_crop(extent, labels.shape[2], spacing_mm)
    width_mm = labels.shape[1] * spacing_mm
    scale = min(LESION_TILE_IN / width_mm, LESION_SIDE_MAX_IN / ((last - first) * spacing_mm))
    side = (width_mm * scale, (last - first) * spacing_mm * scale)
    width = len(views) * (LESION_TILE_IN + TILE_GAP_IN)
    with cv.styled():
        page = cv.new_canvas(width, 0.2 + LESION_TILE_IN + TILE_GAP_IN + side[1])
        for column, view in enumerate(views):
            left = column * (LESION_TILE_IN + TILE_GAP_IN)
            page.text(left, 0.03, _tile_title(view, extent.number), fontsize=7.5)
            window = _window(view, slice(first, last), spacing_mm)
            axes = page.axes(left, 0.2, LESION_TILE_IN, LESION_TILE_IN)
            _lesion_axial(axes, view, labels, centre, window=window, cord=cord)
            inset = (LESION_TILE_IN - side[0]) / 2
            axes = page.axes(left + inset, 0.2 + LESION_TILE_IN + TILE_GAP_IN, *side)
            _lesion_sagittal(
                axes, view, labels, centre, crop=(first, last), window=window, spacing_mm=spacing_mm
            )
    return page.figure


def _window(view: SequenceView, rows: slice, spacing_mm: float) -> tuple[float, float]:
    """Grey window of the slices shown, from covered voxels of cord and CSF."""
    inside = display.disc(view.prepared.shape[:2], display.WINDOW_RADIUS_MM / spacing_mm)
    return display.grey_window(view.prepared[:, :, rows][inside][view.coverage[:, :, rows][inside]])


def _tile_title(view: SequenceView, number: int) -> str:
    contrast = view.contrasts.get(number)
    if contrast is None or not np.isfinite(contrast):
        return view.name
    return f"{view.name}  contrast {contrast:+.2f}"


def _centre_inside(extent: display.Extent, labels: Labels) -> tuple[int, int, int]:
    """The lesion's voxel nearest to its centre, so that crescents are not missed by their own centre."""
    points = np.argwhere(labels == extent.number)
    nearest = points[np.argmin(((points - np.array(extent.centre)) ** 2).sum(axis=1))]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def _side_crop(extent: display.Extent, slices: int, spacing_mm: float) -> tuple[int, int]:
    """Half-open slice range of the sagittal tile: lesion with margin, at least 24 mm, within the grid."""
    start, stop = extent.k_range
    margin = max(LESION_MARGIN_MM / spacing_mm, (24.0 / spacing_mm - (stop - start)) / 2)
    return max(int(start - margin), 0), min(int(np.ceil(stop + margin)), slices)


def _lesion_axial(
    axes: Axes,
    view: SequenceView,
    labels: Labels,
    centre: tuple[int, int, int],
    *,
    window: tuple[float, float],
    cord: BoolArray | None,
) -> None:
    k = centre[2]
    if not view.coverage[:, :, k].any():
        _not_examined(axes)
        return
    cv.show(axes, np.where(view.coverage[:, :, k], view.prepared[:, :, k], np.nan), window)
    if cord is not None:
        cv.outline(axes, cord[:, :, k], color=cv.CORD, width=0.8, glow=False)
    _outline_lesions(axes, labels[:, :, k], labels[centre])
    cv.compass(axes, left="R", right="L", top="A", bottom="P")


def _lesion_sagittal(
    axes: Axes,
    view: SequenceView,
    labels: Labels,
    centre: tuple[int, int, int],
    *,
    crop: tuple[int, int],
    window: tuple[float, float],
    spacing_mm: float,
) -> None:
    rows = slice(*crop)
    covered = view.coverage[centre[0], :, rows]
    if not covered.any():
        _not_examined(axes)
        return
    cv.show(axes, np.where(covered, view.prepared[centre[0], :, rows], np.nan), window)
    _outline_lesions(axes, np.where(covered, labels[centre[0], :, rows], 0), labels[centre])
    cv.compass(axes, left="A", right="P", top="S", bottom="I")
    cv.scale_bar(axes, 5.0, spacing_mm)


def _outline_lesions(axes: Axes, plane: Labels, number: int) -> None:
    """The lesion in full, its neighbours dashed."""
    cv.outline(axes, (plane > 0) & (plane != number), color=cv.LESION, width=0.7, style="dashed")
    cv.outline(axes, plane == number, color=cv.LESION, width=1.2)


def _not_examined(axes: Axes) -> None:
    cv.bare(axes)
    axes.set_xlim(1, 0)
    axes.set_ylim(0, 1)
    cv.hatch(axes, 0.5, 1.5)
    axes.text(0.5, 0.5, "not examined", ha="center", va="center", fontsize=7, color=cv.MUTED)


def along_cord(
    lesions: Sequence[display.Extent],
    columns: Mapping[int, str],
    views: Sequence[SequenceView],
    *,
    slices: int,
    spacing_mm: float,
    levels: Levels = (),
) -> Figure:
    """Where lesions lie along the cord, by column, over what each sequence examined.

    Parameters
    ----------
    lesions
        From :func:`display.extents`; may be empty.
    columns
        Lesion number to one of :data:`COLUMNS`; others get a lane of their own.
    views
        The sequences used, for the bars of what was examined.
    slices, spacing_mm
        Size of the prepared grid along the cord.
    levels
        Vertebral levels, drawn above.
    """
    lanes = [*COLUMNS]
    if any(columns.get(lesion.number, "") not in COLUMNS for lesion in lesions):
        lanes.append(ELSEWHERE)
    top, lane, bar, label = 0.26 if levels else 0.05, 0.3, 0.15, 0.95
    height = len(lanes) * lane + len(views) * bar
    width = cv.WIDTH_IN - label - 0.2
    with cv.styled():
        page = cv.new_canvas(cv.WIDTH_IN, top + height + 0.42)
        axes = page.axes(label, top, width, height)
        axes.set_xlim(slices - 0.5, -0.5)
        axes.set_ylim(height, 0)
        for row, view in enumerate(views):
            _examined_bar(axes, view, y=len(lanes) * lane + row * bar, height=bar, spacing_mm=spacing_mm)
        for lesion in lesions:
            name = columns.get(lesion.number, "")
            row = lanes.index(name if name in COLUMNS else ELSEWHERE)
            _lesion_box(axes, lesion, y=row * lane, height=lane, color=COLUMN_COLORS.get(name, cv.MUTED))
        _lane_labels(axes, lanes, [view.name for view in views], lane=lane, bar=bar)
        mm_axis(axes, slices, spacing_mm=spacing_mm, length_in=width, labelled=True)
        draw_levels(axes, levels, slices)
    return page.figure


def _lane_labels(axes: Axes, lanes: Sequence[str], names: Sequence[str], *, lane: float, bar: float) -> None:
    below = len(lanes) * lane
    at = [lane * (row + 0.5) for row in range(len(lanes))] + [
        below + bar * (row + 0.5) for row in range(len(names))
    ]
    axes.set_yticks(at)
    axes.set_yticklabels([*lanes, *names])
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(lanes) + 1):
        axes.axhline(row * lane, color=cv.FAINT, linewidth=0.5 if row < len(lanes) else 1.0, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _examined_bar(axes: Axes, view: SequenceView, *, y: float, height: float, spacing_mm: float) -> None:
    from matplotlib.patches import Rectangle

    for start, stop in display.runs(display.examined_slices(view.coverage, spacing_mm)):
        box = Rectangle(
            (start - 0.5, y + 0.25 * height), stop - start, 0.5 * height, color="#8fa3b5", linewidth=0
        )
        axes.add_patch(box)


def _lesion_box(axes: Axes, lesion: display.Extent, *, y: float, height: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    start, stop = lesion.k_range
    box = Rectangle(
        (start - 0.5, y + 0.14 * height),
        stop - start,
        0.72 * height,
        facecolor=color,
        edgecolor="white",
        linewidth=0.6,
        alpha=0.9,
    )
    axes.add_patch(box)
    axes.text(
        (start + stop - 1) / 2,
        y + height / 2,
        str(lesion.number),
        color="white",
        fontsize=7,
        fontweight="bold",
        ha="center",
        va="center",
        path_effects=cv.halo(1.8, cv.INK),
    )


def offsets(
    views: Sequence[SequenceView], *, anchor: str, spacing_mm: float, levels: Levels = ()
) -> Figure | None:
    """How far each sequence's centerline lies from the anchor's; None where nothing can be compared.

    Solid where the sequence's own cord was seen, dotted where its position is extrapolated or borrowed.
    """
    shown = [view for view in views if view.offset_mm is not None and view.name != anchor]
    if not shown:
        return None
    colors = (cv.BLUE, cv.ORANGE, cv.GREEN, cv.PURPLE, cv.VERMILION, cv.SKY, cv.MUTED)
    slices = shown[0].prepared.shape[2]
    width, height, left, gap = cv.WIDTH_IN - 0.8, 1.2, 0.6, 0.12
    top = 0.52 if levels else 0.28
    with cv.styled():
        page = cv.new_canvas(cv.WIDTH_IN, top + 2 * height + gap + 0.4)
        for row, direction in enumerate(("towards R, mm", "towards A, mm")):
            axes = page.axes(left, top + row * (height + gap), width, height)
            for order, view in enumerate(shown):
                _offset_line(axes, view, row, color=colors[order % len(colors)])
            axes.set_xlim(slices - 0.5, -0.5)
            _offset_axes(axes, direction)
            mm_axis(axes, slices, spacing_mm=spacing_mm, length_in=width, labelled=row == 1)
            draw_levels(axes, levels if row == 0 else (), slices)
        handles, names = axes.get_legend_handles_labels()
        page.figure.legend(
            handles,
            names,
            loc="upper left",
            ncols=len(names),
            frameon=False,
            fontsize=7.5,
            bbox_to_anchor=(left / cv.WIDTH_IN - 0.01, 1.0),
            borderaxespad=0.1,
        )
    return page.figure


def _offset_line(axes: Axes, view: SequenceView, column: int, *, color: str) -> None:
    if view.offset_mm is None:
        return
    values = view.offset_mm[:, column]
    k = np.arange(values.size)
    seen = np.ones(values.size, dtype=bool) if view.measured is None else view.measured
    axes.plot(k, values, color=color, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.plot(k, np.where(seen, values, np.nan), color=color, linewidth=1.5, label=view.name)


def _offset_axes(axes: Axes, direction: str) -> None:
    axes.axhline(0, color=cv.MUTED, linewidth=0.6)
    axes.set_ylabel(direction, fontsize=7, color=cv.MUTED)
    low, high = axes.get_ylim()
    reach = max(abs(low), abs(high), 1.0)
    axes.set_ylim(-reach, reach)
    axes.grid(axis="y", color=cv.FAINT, linewidth=0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
