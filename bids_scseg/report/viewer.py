"""The volumes of a session's page: small enough to travel in it, drawn there by NiiVue."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bids_scseg.report import display, encode, pages
from bids_scseg.report.records import SequenceView, SessionReport

#: Half the width of what is shown across the cord: cord, fluid and the canal's wall.
REACH_MM = 12.0
#: Bytes of all grey volumes of a page, before base64 adds a third.
BUDGET = 3_000_000
QUALITIES = (80, 65, 50, 35, 20)
#: A WebP image has no more pixels than this along a side.
MOST_PIXELS = 16383
LIBRARY = "niivue/niivue.umd.js.gz"

Bytes = npt.NDArray[np.uint8]


def library() -> tuple[str, str]:
    """NiiVue's source, and the same as base64 of its gzip file, as the page holds it."""
    packed = (pages.ASSETS / LIBRARY).read_bytes()
    return gzip.decompress(packed).decode("utf-8"), base64.b64encode(packed).decode("ascii")


def viewer_data(report: SessionReport) -> dict[str, object] | None:
    """What the viewer draws; None without sequences, or with a grid that is too long for an image.

    Every volume (i, j, k) travels as one picture with a row for each (i, j) and a column for each slice k:
    grey volumes as lossy WebP of 8 bits, with brightness evened out along the cord; lesions and cord without
    loss, the lesion's number in red and green (low and high byte), the cord in blue. ``examined`` of a
    sequence are its runs of slices [from, to); ``levels`` are (name, bottom, top), [bottom, top).
    """
    if not report.sequences:
        return None
    shape = report.sequences[0].prepared.shape
    window = _window(shape, report.spacing_mm)
    size = tuple(int(part.stop - part.start) for part in window)
    if shape[2] > MOST_PIXELS or size[0] * size[1] > MOST_PIXELS:
        return None
    greys = [_grey(view, report.spacing_mm)[window] for view in report.sequences]
    return {
        "label": report.label,
        "shape": [*size, shape[2]],
        "spacing": report.spacing_mm,
        "sequences": [
            {
                "name": view.name,
                "uri": encode.data_uri(data),
                "examined": display.runs(display.examined_slices(view.coverage, report.spacing_mm)),
            }
            for view, data in zip(report.sequences, _within([_flat(grey) for grey in greys]), strict=True)
        ],
        "masks": encode.data_uri(_masks(report, window)),
        "lesions": [
            {
                "number": found.number,
                "at": [
                    round(found.centre[0] - window[0].start, 1), round(found.centre[1] - window[1].start, 1),
                    round(found.centre[2], 1),
                ],
                "from": found.k_range[0], "to": found.k_range[1],
            }
            for found in display.extents(report.labels)
        ],
        "levels": [[name, round(bottom, 4), round(top, 4)] for name, bottom, top in report.levels],
        "anchor": report.anchor,
    }  # fmt: skip


def _window(shape: Sequence[int], spacing_mm: float) -> tuple[slice, slice]:
    half = round(REACH_MM / spacing_mm)
    starts = [max(size // 2 - half, 0) for size in shape[:2]]
    return tuple(  # type: ignore[return-value]
        slice(start, min(start + 2 * half, size)) for start, size in zip(starts, shape[:2], strict=True)
    )


def _grey(view: SequenceView, spacing_mm: float) -> Bytes:
    """(i, j, k) uint8, 0 where nothing is covered."""
    low, high = display.even_window(view.prepared, view.coverage, spacing_mm)
    share = np.clip((view.prepared - low) / (high - low), 0, 1)
    return np.where(view.coverage, np.rint(share * 255), 0).astype(np.uint8)


def _flat(volume: Bytes) -> Bytes:
    """(i, j, k) to a picture of i·j rows and k columns."""
    return np.ascontiguousarray(volume.reshape(-1, volume.shape[2]))


def _within(pictures: Sequence[Bytes]) -> list[bytes]:
    """WebP at the best quality at which all together stay within the budget."""
    encoded: list[bytes] = []
    for quality in QUALITIES:
        encoded = [encode.webp(picture, quality=quality) for picture in pictures]
        if sum(map(len, encoded)) <= BUDGET:
            break
    return encoded


def _masks(report: SessionReport, window: tuple[slice, slice]) -> bytes:
    shape = report.sequences[0].prepared.shape
    labels = np.zeros(shape, np.uint16) if report.labels is None else report.labels.astype(np.uint16)
    cord = np.zeros(shape, bool) if report.cord is None else report.cord
    channels = (labels & 255, labels >> 8, np.where(cord, 255, 0))
    picture = np.stack([_flat(channel[window].astype(np.uint8)) for channel in channels], axis=-1)
    return encode.webp_exact(picture)
