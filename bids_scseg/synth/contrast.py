"""Intensities of the tissues in each sequence, the sign of a lesion, and its contrast-to-noise.

The templates rank the tissues as the sequences do and are drawn around for each subject; they are not
relaxation models. CNR = |lesion − surrounding cord| / standard deviation of lesion-free cord within ±10 mm.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from bids_scseg.synth.subject import Doubles, Floats, Rng
from bids_scseg.synth.tissues import N_TISSUES, Tissue

SequenceName = Literal["T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE", "PSIR"]
#: The sequences that a session may have, in the order of the specification's tables.
SEQUENCES: tuple[SequenceName, ...] = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE", "PSIR")
#: Sign of a lesion: brighter (+1) or darker (-1) than the cord.
LESION_SIGN: dict[str, int] = {
    "T2Sag": 1, "STIR": 1, "T2StarAx": 1, "T2Ax": 1, "T1Sag": -1, "MP2RAGE": -1, "PSIR": -1,
}  # fmt: skip
#: Bounds of the detectability classes in units of CNR.
FAINT_CNR, VISIBLE_CNR = 0.7, 2.0

#: Tissue intensities by sequence, fluid or fat about 1.
_TABLE = """
tissue         T2Sag     STIR T2StarAx     T2Ax    T1Sag  MP2RAGE     PSIR       MT  T1Brain
AIR                0        0        0        0        0        0        0        0        0
SKIN             .45      .25      .55      .45      .60      .70      .70      .60      .60
FAT              .75      .06      .60      .75      1.0      .92      .95      .75      1.0
MUSCLE           .16      .22      .48      .16      .36      .50      .42      .34      .36
SOFT             .32      .42      .55      .32      .42      .50      .46      .52      .42
GLAND            .45      .60      .62      .45      .46      .52      .48      .58      .46
VESSEL           .06      .12      1.0      .06      .10      .30      .20      .95      .55
CORTEX           .03      .03      .06      .03      .05      .28      .15      .06      .05
MARROW           .33      .12      .20      .32      .55      .70      .72      .40      .60
DISC             .30      .25      .52      .30      .34      .38      .36      .52      .34
LIGAMENT         .04      .05      .18      .04      .10      .30      .20      .22      .15
EPIDURAL         .62      .10      .55      .62      .90      .88      .90      .68      .90
CSF              1.0      1.0      .98      1.0      .14      .08      .05      .66      .12
ROOT             .42      .48      .66      .45      .34      .42      .38      .48      .34
CORD_WHITE       .30      .34      .58      .30      .44      .78      .66      .46      .62
CORD_GREY        .36      .40      .72      .38      .41      .66      .54      .50      .48
BRAINSTEM        .31      .35      .62      .31      .45      .80      .68      .48      .62
BRAIN_WHITE      .28      .30      .58      .28      .50      .92      .80      .46      .72
BRAIN_GREY       .44      .50      .74      .44      .38      .60      .52      .55      .48
LUNG             .02      .02      .02      .02      .02      .10      .05      .02      .02
TENDON           .08      .10      .32      .08      .15      .40      .28      .26      .20
"""


def _read_templates() -> dict[str, Doubles]:
    """`_TABLE` as one array over the tissues for each sequence."""
    head, *rows = [line.split() for line in _TABLE.strip().splitlines()]
    out = {name: np.zeros(N_TISSUES) for name in head[1:]}
    for tissue, *values in rows:
        for name, value in zip(head[1:], values, strict=True):
            out[name][Tissue[tissue]] = float(value)
    return out


#: Mean intensity of each tissue ``(N_TISSUES,)`` by sequence (and for distractors).
TEMPLATES: dict[str, Doubles] = _read_templates()
#: Relative deviation of a tissue's intensity between subjects.
SUBJECT_CV = 0.07


def draw_intensities(rng: Rng, sequence: str) -> Floats:
    """Intensity of each tissue ``(N_TISSUES,)`` float32 in one subject's image; the cord keeps its order."""
    means = TEMPLATES[sequence] * np.exp(rng.normal(0, SUBJECT_CV, N_TISSUES))
    wanted = TEMPLATES[sequence][Tissue.CORD_GREY] / TEMPLATES[sequence][Tissue.CORD_WHITE]
    means[Tissue.CORD_GREY] = means[Tissue.CORD_WHITE] * (1 + (wanted - 1) * rng.uniform(0.4, 1.1))
    means[Tissue.BRAINSTEM] = means[Tissue.CORD_WHITE] * rng.normal(1.03, 0.02)
    return np.asarray(means, np.float32)
