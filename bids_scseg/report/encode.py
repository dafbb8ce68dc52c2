"""Figures to bytes: PNG for files, WebP for pages, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130  # 1,430 pixels across a full-page figure: sharp on a laptop and on A4
PAGE_BUDGET = 5_000_000  # bytes of images per page, before base64 adds a third
QUALITIES = (88, 75, 60, 40, 20)  # of WebP, tried in turn until the page fits

Pixels = npt.NDArray[np.uint8]


def render(figure: Figure, *, dpi: int = DPI) -> Pixels:
    """Figure to (rows, columns, 3) uint8 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from bids_scseg.report.canvas import styled

    with styled():
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def png(pixels: Pixels) -> bytes:
    """Pixels to the bytes of a PNG file."""
    return _encoded(pixels, "PNG", compress_level=3)


def webp(pixels: Pixels, *, quality: int = QUALITIES[0]) -> bytes:
    """Pixels to the bytes of a WebP file."""
    return _encoded(pixels, "WEBP", quality=quality, method=4)


def webp_exact(pixels: Pixels) -> bytes:
    """Pixels to the bytes of a WebP file that gives back every value."""
    return _encoded(pixels, "WEBP", lossless=True, exact=True, quality=60, method=4)


def webp_within(images: Sequence[Pixels], budget: int = PAGE_BUDGET) -> list[bytes]:
    """Encode images with the best quality at which together they stay within ``budget`` bytes.

    At the lowest quality they are returned whatever their size.
    """
    encoded: list[bytes] = []
    for quality in QUALITIES:
        encoded = [webp(pixels, quality=quality) for pixels in images]
        if sum(map(len, encoded)) <= budget:
            break
    return encoded


def data_uri(data: bytes, *, mime: str = "image/webp") -> str:
    """Bytes to an address that holds them."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(pixels: Pixels, kind: str, **options: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()
