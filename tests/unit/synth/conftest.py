"""One subject for all tests of the room: drawing it is the slow part."""

from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.synth.anatomy import Anatomy, draw_anatomy


@pytest.fixture(scope="session")
def subject() -> Anatomy:
    return draw_anatomy(np.random.default_rng(11))
