"""Drawing helpers that every figure shares: style, canvas in inches, outlines, marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

# Okabe and Ito's palette, which people with any common colour vision tell apart.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"

LESION = "#FFA31A"  # a brighter orange, for thin lines on grey
CORD = SKY
CENTERLINE = YELLOW
INK, MUTED, FAINT, PAPER = "#1d2733", "#5b6875", "#c3cad2", "#ffffff"
NOT_EXAMINED = "#e9edf1"

WIDTH_IN = 11.0  # width of a full-page figure, inches
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "hatch.color": "#a3adb8",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.unicode_minus": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """Run with this report's style and leave matplotlib's own as it was."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


@dataclass(frozen=True, slots=True)
class Canvas:
    """A figure on which axes are placed in inches from the top left corner."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of the given size, its upper left corner at (left, top)."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Text whose upper left corner is at (left, top)."""
        options: dict[str, Any] = {"va": "top", "ha": "left", **style}
        self.figure.text(left / self.width, 1 - top / self.height, words, **options)


def new_canvas(width: float, height: float) -> Canvas:
    """An empty canvas that needs no display and no pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return Canvas(figure, width, height)


def halo(width: float = 1.6, color: str = "black") -> list[Any]:
    """Path effects that keep text and lines readable on any grey."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground=color, alpha=0.75), Normal()]


def bare(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def show(axes: Axes, image: Array, window: tuple[float, float], *, cmap: str = "gray") -> None:
    """Draw image[x, y] with y upwards and x to the LEFT, in index coordinates; NaN is shown as not examined.

    Radiological convention comes from that one flip: axial slices have the patient's right, and sagittal
    slices anterior, on the viewer's left; strips have the head there.
    """
    nx, ny = image.shape
    extent = (-0.5, nx - 0.5, -0.5, ny - 0.5)
    low, high = window
    axes.imshow(
        image.T,
        origin="lower",
        extent=extent,
        cmap=cmap,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="bilinear",
    )
    axes.set_facecolor(NOT_EXAMINED)  # shows through where values are NaN
    axes.set_xlim(nx - 0.5, -0.5)
    axes.set_ylim(-0.5, ny - 0.5)
    bare(axes)


def outline(
    axes: Axes, mask: Array, *, color: str, width: float = 1.1, style: str = "solid", glow: bool = True
) -> None:
    """Contour of mask[x, y] in index coordinates, with a dark rim if ``glow``; nothing if it is empty."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float32), 1)
    x, y = (np.arange(-1, size + 1) for size in mask.shape)
    lines = axes.contour(x, y, padded.T, levels=[0.5], colors=[color], linewidths=width, linestyles=[style])
    if glow:
        lines.set(path_effects=halo(width + 0.7))


def corner(
    axes: Axes, words: str, *, at: tuple[float, float], size: float = 6.5, color: str = "white"
) -> None:
    """Small text inside axes at a fraction of its width and height."""
    x, y = at
    sides = ("left" if x < 0.4 else "right" if x > 0.6 else "center"), ("bottom" if y < 0.4 else "top")
    axes.text(
        x,
        y if y < 0.4 or y > 0.6 else 0.5,
        words,
        transform=axes.transAxes,
        fontsize=size,
        color=color,
        ha=sides[0],
        va=sides[1] if y < 0.4 or y > 0.6 else "center",
        path_effects=halo(),
        clip_on=True,
    )


def compass(axes: Axes, *, left: str, right: str, top: str, bottom: str) -> None:
    """Letters of the anatomical directions at the four sides."""
    marks = ((left, (0.02, 0.5)), (right, (0.98, 0.5)), (top, (0.5, 0.99)), (bottom, (0.5, 0.01)))
    for letter, at in marks:
        if letter:
            corner(axes, letter, at=at)


def scale_bar(axes: Axes, length_mm: float, spacing_mm: float) -> None:
    """A white bar of a stated length at the lower right."""
    high, low = axes.get_xlim()
    bottom, top = axes.get_ylim()
    start, y = low + 0.06 * (high - low), bottom + 0.07 * (top - bottom)
    axes.plot(
        [start, start + length_mm / spacing_mm],
        [y, y],
        color="white",
        linewidth=1.6,
        path_effects=halo(2.6),
        solid_capstyle="butt",
    )
    axes.text(
        start,
        y + 0.02 * (top - bottom),
        f"{length_mm:g} mm",
        color="white",
        fontsize=6,
        ha="right",
        va="bottom",
        path_effects=halo(),
    )


def hatch(axes: Axes, start: float, stop: float) -> None:
    """Mark columns [start, stop) as not examined."""
    axes.axvspan(
        start - 0.5, stop - 0.5, facecolor=NOT_EXAMINED, edgecolor="#a3adb8", hatch="////", linewidth=0
    )
