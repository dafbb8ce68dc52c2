"""Figures of the straightened cord: long strips with the head at the left and mm along the cord."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bids_scseg.report import canvas as cv
from bids_scseg.report import display
from bids_scseg.report.records import BoolArray, Labels, SequenceView, Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SCALE = 0.10  # inches per mm: short cords are not blown up beyond this
MAX_HEIGHT = 11.0  # inches: a figure stays within one printed page
TITLE_IN, AXIS_IN, LEVEL_IN, GROUP_IN, GAP_IN, SIDE_IN = 0.2, 0.4, 0.24, 0.26, 0.3, 0.14
LEVEL_SIZE = 6.5  # points
LETTER = 0.65  # width of a letter in units of its size, about

#: (name, bottom, top) of vertebral levels in slice indices, [bottom, top).
Levels = Sequence[tuple[str, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """One strip of the straightened cord.

    Attributes
    ----------
    title
        Above the strip.
    image : (n, K) float
        Cross axis first (its index grows towards ``top``), slices second.
    window
        Grey values shown as black and white.
    examined : (K,) bool
        Slices with data.
    outlines
        (number, (n, K) mask) of lesions; number 0 draws no number.
    top, bottom
        Letters of the directions up and down on the page.
    group
        Heading of the block that the strip belongs to.
    cmap
        Colour map.
    """

    title: str
    image: npt.NDArray[np.floating]
    window: tuple[float, float]
    examined: BoolArray
    outlines: tuple[tuple[int, BoolArray], ...] = ()
    top: str = "A"
    bottom: str = "P"
    group: str = ""
    cmap: str = "gray"


@dataclass(frozen=True, slots=True)
class Layout:
    """How strips share the page: columns, and inches per mm."""

    columns: int
    scale: float


def best_layout(blocks: Sequence[int], *, length_mm: float, depth_mm: float) -> Layout:
    """Columns that show strips largest within a page; ``blocks`` are the numbers of strips per heading."""
    options = []
    for columns in range(1, max(blocks) + 1):
        rows = sum(-(-count // columns) for count in blocks)
        across = (cv.WIDTH_IN - columns * 2 * SIDE_IN - (columns - 1) * GAP_IN) / columns / length_mm
        chrome = rows * TITLE_IN + len(blocks) * (GROUP_IN + AXIS_IN + LEVEL_IN)
        down = (MAX_HEIGHT - chrome) / rows / depth_mm
        options.append(Layout(columns, max(min(across, down, MAX_SCALE), 0.012)))
    return max(options, key=lambda option: (round(option.scale, 4), option.columns))


def strip_figure(strips: Sequence[Strip], *, spacing_mm: float, levels: Levels = ()) -> Figure:
    """Draw strips in blocks by group, as many beside each other as fit.

    Parameters
    ----------
    strips
        At least one; all with the same number of slices.
    spacing_mm
        Voxel size.
    levels
        Vertebral levels, drawn above.
    """
    blocks = [list(block) for _, block in groupby(strips, key=lambda strip: strip.group)]
    depth, length = (size * spacing_mm for size in strips[0].image.shape)
    layout = best_layout([len(block) for block in blocks], length_mm=length, depth_mm=depth)
    height = sum(_block_height(block, layout, depth, levels) for block in blocks)
    with cv.styled():
        page = cv.new_canvas(cv.WIDTH_IN, height)
        top = 0.0
        for block in blocks:
            _draw_block(page, block, layout=layout, top=top, spacing_mm=spacing_mm, levels=levels)
            top += _block_height(block, layout, depth, levels)
    return page.figure


def _block_height(block: Sequence[Strip], layout: Layout, depth_mm: float, levels: Levels) -> float:
    rows = -(-len(block) // layout.columns)
    heading = GROUP_IN if block[0].group else 0.0
    return heading + rows * (TITLE_IN + depth_mm * layout.scale) + AXIS_IN + (LEVEL_IN if levels else 0.0)


def _draw_block(
    page: cv.Canvas, block: Sequence[Strip], *, layout: Layout, top: float, spacing_mm: float, levels: Levels
) -> None:
    """One heading with its strips, filled row by row."""
    if block[0].group:
        page.text(SIDE_IN, top + 0.05, block[0].group, fontsize=9, fontweight="bold")
        top += GROUP_IN
    band = LEVEL_IN if levels else 0.0
    depth, length = (size * spacing_mm * layout.scale for size in block[0].image.shape)
    for index, strip in enumerate(block):
        row, column = divmod(index, layout.columns)
        left = SIDE_IN + column * (length + 2 * SIDE_IN + GAP_IN)
        y = top + row * (TITLE_IN + depth) + (band if row else 0.0)
        page.text(left, y + 0.05, strip.title, fontsize=7.5)
        axes = page.axes(left, y + TITLE_IN + (0.0 if row else band), length, depth)
        _draw_strip(axes, strip, levels=levels if row == 0 else ())
        last = index + layout.columns >= len(block)
        mm_axis(axes, strip.image.shape[1], spacing_mm=spacing_mm, length_in=length, labelled=last)


def _draw_strip(axes: Axes, strip: Strip, *, levels: Levels) -> None:
    cv.show(axes, strip.image.T, strip.window, cmap=strip.cmap)
    depth, slices = strip.image.shape
    for start, stop in display.runs(~strip.examined):
        cv.hatch(axes, start, stop)
        if stop - start > 0.16 * slices:
            middle = ((start + stop - 1) / 2, (depth - 1) / 2)
            axes.text(*middle, "not examined", ha="center", va="center", fontsize=6.5, color=cv.MUTED)
    axes.axhline((depth - 1) / 2, color="white", linewidth=0.6, linestyle=(0, (4, 4)), alpha=0.75)
    for _, mask in strip.outlines:
        cv.outline(axes, (mask & strip.examined).T, color=cv.LESION)
    _number_lesions(axes, strip)
    _directions(axes, strip)
    draw_levels(axes, levels, slices)


def _directions(axes: Axes, strip: Strip) -> None:
    """Letters up and down, inside where there is an image, and S and I outside at the ends."""
    if strip.examined.any():
        edge = float(np.flatnonzero(strip.examined)[-1]) + 0.5
        for letter, y, side in ((strip.top, 0.97, "top"), (strip.bottom, 0.03, "bottom")):
            axes.annotate(
                letter,
                (edge, y),
                xycoords=("data", "axes fraction"),
                xytext=(2, 0),
                textcoords="offset points",
                fontsize=6.5,
                color="white",
                ha="left",
                va=side,
                path_effects=cv.halo(),
            )
    for letter, end, shift, ha in (("S", 0.0, -2, "right"), ("I", 1.0, 2, "left")):
        axes.annotate(
            letter,
            (end, 0.5),
            xytext=(shift, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=6.5,
            color=cv.MUTED,
            ha=ha,
            va="center",
        )


def _number_lesions(axes: Axes, strip: Strip) -> None:
    """Numbers above or below their lesions, alternating sides where they would collide."""
    depth, slices = strip.image.shape
    room = 9 * _slices_per_point(axes, slices)
    last = {True: np.inf, False: np.inf}
    shown = [(_middle(mask & strip.examined), number) for number, mask in strip.outlines if number]
    for at, number in sorted(shown, reverse=True):
        if at < 0:
            continue
        above = last[True] - at >= room or last[True] >= last[False]
        last[above] = at
        y, va = (depth - 1.5, "top") if above else (0.5, "bottom")
        axes.text(
            at,
            y,
            str(number),
            color=cv.LESION,
            fontsize=7,
            fontweight="bold",
            ha="center",
            va=va,
            path_effects=cv.halo(2.0),
        )


def _slices_per_point(axes: Axes, slices: int) -> float:
    """How many slices lie under a point (1/72 inch) of a strip's length."""
    return slices / (72 * axes.get_position().width * cv.WIDTH_IN)


def _middle(mask: BoolArray) -> float:
    """Mean slice of a mask; -1 if it is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    return float(columns.mean()) if columns.size else -1.0


def nice_step(length_mm: float, length_in: float) -> float:
    """Distance between ticks in mm so that labels stand about 0.6 inch apart or more."""
    wanted = length_mm / max(length_in / 0.6, 1.0)
    return next((step for step in (2, 5, 10, 20, 50, 100, 200) if step >= wanted), 500.0)


def mm_axis(axes: Axes, slices: int, *, spacing_mm: float, length_in: float, labelled: bool) -> None:
    """Ticks in mm below the top of the grid along a strip."""
    length = slices * spacing_mm
    step = nice_step(length, length_in)
    at = np.arange(0, length + 1e-6, step)
    axes.set_xticks(slices - 0.5 - at / spacing_mm)
    axes.set_xticklabels([f"{mm:g}" for mm in at] if labelled else [])
    axes.tick_params(axis="x", length=2.5 if labelled else 0)
    if labelled:
        name = "mm below the top of the grid" if length_in > 2.5 else "mm"
        axes.set_xlabel(name, fontsize=7, labelpad=1, color=cv.MUTED)


def draw_levels(axes: Axes, levels: Levels, slices: int) -> None:
    """Vertebral levels above a strip: ticks at their borders, names in the middle of what is in view.

    A level of which too little is in view for its name has none.
    """
    low, high = -0.5, slices - 0.5
    ends = sorted({round(k, 3) for _, bottom, top in levels for k in (bottom, top) if low <= k <= high})
    for k in ends:
        axes.annotate(
            "",
            (k, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 9),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": cv.BLUE, "shrinkA": 0, "shrinkB": 0},
        )
    letter = LETTER * LEVEL_SIZE * _slices_per_point(axes, slices)
    for name, bottom, top in levels:
        start, stop = max(bottom, low), min(top, high)
        if stop - start < letter * len(name):
            continue
        axes.annotate(
            name,
            ((start + stop) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=LEVEL_SIZE,
            color=cv.BLUE,
        )


def _sequence_strip(
    view: SequenceView,
    volume: Volume,
    spacing_mm: float,
    *,
    group: str,
    side: display.Side,
    outlines: tuple[tuple[int, BoolArray], ...] = (),
) -> Strip:
    name = f"{view.name} · {view.description}" if view.description else view.name
    low, high = display.even_window(volume, view.coverage, spacing_mm)
    return Strip(
        title=name,
        image=(display.strip(volume, spacing_mm, side=side) - low) / (high - low),
        window=(0.0, 1.0),
        examined=display.examined_slices(view.coverage, spacing_mm),
        outlines=outlines,
        top="A" if side == "sagittal" else "R",
        bottom="P" if side == "sagittal" else "L",
        group=group,
    )


def projections(labels: Labels | None, *, side: display.Side) -> tuple[tuple[int, BoolArray], ...]:
    """(number, projected mask) of every lesion."""
    if labels is None:
        return ()
    return tuple(
        (number, display.projection(labels == number, side=side)) for number in display.lesion_numbers(labels)
    )


def overview(
    views: Sequence[SequenceView], labels: Labels | None, *, spacing_mm: float, levels: Levels = ()
) -> Figure:
    """The straightened cord in every sequence, mid-sagittal, with the lesions' projected outlines."""
    outlines = projections(labels, side="sagittal")
    strips = [
        _sequence_strip(view, view.prepared, spacing_mm, group="", side="sagittal", outlines=outlines)
        for view in views
    ]
    return strip_figure(strips, spacing_mm=spacing_mm, levels=levels)


def alignment(views: Sequence[SequenceView], *, spacing_mm: float, levels: Levels = ()) -> Figure:
    """Mid-sagittal strips before (the anchor's centerline for all) and after (each its own centerline)."""
    before, after = (
        "Before: windows round the anchor's centerline",
        "After: windows round each own centerline",
    )
    strips = [
        _sequence_strip(
            view,
            view.prepared if view.unaligned is None else view.unaligned,
            spacing_mm,
            group=before,
            side="sagittal",
        )
        for view in views
    ]
    strips += [
        _sequence_strip(view, view.prepared, spacing_mm, group=after, side="sagittal") for view in views
    ]
    return strip_figure(strips, spacing_mm=spacing_mm, levels=levels)


def probability(
    values: Volume, labels: Labels | None, examined: BoolArray, *, spacing_mm: float, levels: Levels = ()
) -> Figure:
    """Maximum lesion probability seen from the side and from the front, on a scale from 0 to 1."""
    sides: tuple[tuple[display.Side, str, str, str], ...] = (
        ("sagittal", "seen from the side (maximum along R–L)", "A", "P"),
        ("coronal", "seen from the front (maximum along A–P)", "R", "L"),
    )
    strips = [
        Strip(
            title=title,
            image=display.projection(values, side=side),
            window=(0.0, 1.0),
            examined=examined,
            outlines=projections(labels, side=side),
            top=top,
            bottom=bottom,
            cmap="cividis",
        )
        for side, title, top, bottom in sides
    ]
    return strip_figure(strips, spacing_mm=spacing_mm, levels=levels)
