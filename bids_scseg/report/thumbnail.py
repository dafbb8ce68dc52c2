"""A session at a glance: the straightened cord as a narrow strip, plain and with its lesions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bids_scseg.report import display, encode
from bids_scseg.report.records import SequenceView, SessionReport

#: Millimetres of cord per pixel: 300 strips of a whole cord stay within 3 MB.
MM_PER_PIXEL = 1.0
#: How much is shown in front of and behind the cord's centre.
REACH_MM = 15.0
GAP_PX = 2
QUALITY = 70
LESION_RGB = (255, 150, 0)
LESION_SHARE = 0.7  # opacity of the overlay
EMPTY_RGB = (222, 228, 234)  # not covered


def thumbnail(report: SessionReport) -> bytes | None:
    """A WebP image of the anchor: superior on top, anterior on the left; None without an anchor.

    Two strips side by side: the mean over 2 mm about the middle, and the same with all lesions seen from the
    side. Lengths are to scale, so images of different sessions can be compared.
    """
    view = next((view for view in report.sequences if view.name == report.anchor), None)
    if view is None:
        return None
    grey, empty = _strip(view, report.spacing_mm)
    plain = np.where(empty[..., None], np.array(EMPTY_RGB, np.float32), grey[..., None])
    marked = plain.copy()
    if report.labels is not None:
        seen = display.projection(np.asarray(report.labels > 0, dtype=np.float32))
        share = np.clip(_shrunk(seen, report.spacing_mm) * 1.5, 0, 1)[..., None] * LESION_SHARE
        marked = plain * (1 - share) + np.array(LESION_RGB, np.float32) * share
    gap = np.full((plain.shape[0], GAP_PX, 3), 255, np.float32)
    pixels = np.clip(np.concatenate([plain, gap, marked], axis=1), 0, 255).astype(np.uint8)
    return encode.webp(np.ascontiguousarray(pixels), quality=QUALITY)


def _strip(view: SequenceView, spacing_mm: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Grey values 0 to 255 (rows from superior, columns from anterior), and where nothing is covered."""
    low, high = display.even_window(view.prepared, view.coverage, spacing_mm)
    strip = (display.strip(view.prepared, spacing_mm) - low) / (high - low)
    covered = display.strip(view.coverage.astype(np.float32), spacing_mm)
    grey = np.clip(_shrunk(np.clip(strip, 0, 1) * 255, spacing_mm), 0, 255)
    return grey.astype(np.float32), _shrunk(covered, spacing_mm) < 0.5


def _shrunk(strip: npt.NDArray[np.floating], spacing_mm: float) -> npt.NDArray[np.float32]:
    """(nj, K), anterior and superior at the high ends, to rows from superior and columns from anterior."""
    from scipy import ndimage

    reach = min(round(REACH_MM / spacing_mm), strip.shape[0] // 2)
    middle = strip.shape[0] // 2
    cut = strip[middle - reach : middle + reach].astype(np.float32)
    factor = spacing_mm / MM_PER_PIXEL
    small = ndimage.zoom(ndimage.uniform_filter(cut, max(round(1 / factor), 1)), factor, order=1)
    return np.asarray(small.T[::-1, ::-1], dtype=np.float32)
