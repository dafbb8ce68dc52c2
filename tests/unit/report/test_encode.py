"""Figures as bytes."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from bids_scseg.report import encode

PIXELS = np.random.default_rng(0).integers(0, 255, size=(80, 120, 3), dtype=np.uint8)


def test_png_keeps_every_pixel():
    with Image.open(io.BytesIO(encode.png(PIXELS))) as image:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_quality_falls_until_the_page_fits():
    best = encode.webp(PIXELS)
    (fitted,) = encode.webp_within([PIXELS], budget=len(best) * 3 // 4)
    assert len(fitted) <= len(best) * 3 // 4
    (smallest,) = encode.webp_within([PIXELS], budget=1)
    assert smallest == encode.webp(PIXELS, quality=encode.QUALITIES[-1])
    assert encode.webp_within([]) == []


def test_data_uri_holds_the_bytes():
    kind, _, data = encode.data_uri(b"abc").partition(",")
    assert kind == "data:image/webp;base64" and base64.b64decode(data) == b"abc"
