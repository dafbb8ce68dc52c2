"""The tissue labels of the procedural subject."""

from __future__ import annotations

from enum import IntEnum


class Tissue(IntEnum):
    """One integer per tissue; the values are stable because tissue maps are stored with them."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    SOFT = 4
    GLAND = 5
    VESSEL = 6
    CORTEX = 7
    MARROW = 8
    DISC = 9
    LIGAMENT = 10
    EPIDURAL = 11
    CSF = 12
    ROOT = 13
    CORD_WHITE = 14
    CORD_GREY = 15
    BRAINSTEM = 16
    BRAIN_WHITE = 17
    BRAIN_GREY = 18
    LUNG = 19
    TENDON = 20


N_TISSUES = len(Tissue)

#: The tissues that make up the spinal cord; a cord mask is ``np.isin(tissue, CORD_TISSUES)``.
CORD_TISSUES = (Tissue.CORD_WHITE, Tissue.CORD_GREY)
