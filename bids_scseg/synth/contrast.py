"""Intensities of the tissues in each sequence, the sign of a lesion, and its contrast-to-noise.

The templates rank the tissues as the sequences do and are drawn around for each subject; they are not relaxation
models. CNR = |lesion − surrounding cord| / standard deviation of lesion-free cord within ±10 mm.
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

_ORDER = (
    "AIR", "SKIN", "FAT", "MUSCLE", "SOFT", "GLAND", "VESSEL", "CORTEX", "MARROW", "DISC", "LIGAMENT", "EPIDURAL",
    "CSF", "ROOT", "CORD_WHITE", "CORD_GREY", "BRAINSTEM", "BRAIN_WHITE", "BRAIN_GREY", "LUNG", "TENDON",
)  # fmt: skip


def _template(text: str) -> Doubles:
    """One value for each tissue in the order of `_ORDER`."""
    out = np.zeros(N_TISSUES)
    out[[Tissue[name] for name in _ORDER]] = [float(value) for value in text.split()]
    return out


#: Tissue intensities, fluid or fat about 1. Columns as in `_ORDER`.
#:                 air  skin fat  musc soft glan vess cort marr disc liga epid csf  root wm   gm   stem bwm  bgm  lung tend
TEMPLATES: dict[str, Doubles] = {
    "T2Sag":    _template("0 .45 .75 .16 .32 .45 .06 .03 .33 .30 .04 .62 1.0 .42 .30 .36 .31 .28 .44 .02 .08"),
    "STIR":     _template("0 .25 .06 .22 .42 .60 .12 .03 .12 .25 .05 .10 1.0 .48 .34 .40 .35 .30 .50 .02 .10"),
    "T2StarAx": _template("0 .55 .60 .48 .55 .62 1.0 .06 .20 .52 .18 .55 .98 .66 .58 .72 .62 .58 .74 .02 .32"),
    "T2Ax":     _template("0 .45 .75 .16 .32 .45 .06 .03 .32 .30 .04 .62 1.0 .45 .30 .38 .31 .28 .44 .02 .08"),
    "T1Sag":    _template("0 .60 1.0 .36 .42 .46 .10 .05 .55 .34 .10 .90 .14 .34 .44 .41 .45 .50 .38 .02 .15"),
    "MP2RAGE":  _template("0 .70 .92 .50 .50 .52 .30 .28 .70 .38 .30 .88 .08 .42 .78 .66 .80 .92 .60 .10 .40"),
    "PSIR":     _template("0 .70 .95 .42 .46 .48 .20 .15 .72 .36 .20 .90 .05 .38 .66 .54 .68 .80 .52 .05 .28"),
    "MT":       _template("0 .60 .75 .34 .52 .58 .95 .06 .40 .52 .22 .68 .66 .48 .46 .50 .48 .46 .55 .02 .26"),
    "T1Brain":  _template("0 .60 1.0 .36 .42 .46 .55 .05 .60 .34 .15 .90 .12 .34 .62 .48 .62 .72 .48 .02 .20"),
}  # fmt: skip
#: Relative deviation of a tissue's intensity between subjects.
SUBJECT_CV = 0.07


def draw_intensities(rng: Rng, sequence: str) -> Floats:
    """Intensity of each tissue ``(N_TISSUES,)`` float32 in one subject's image of a sequence (cord order kept)."""
    means = TEMPLATES[sequence] * np.exp(rng.normal(0, SUBJECT_CV, N_TISSUES))
    wanted = TEMPLATES[sequence][Tissue.CORD_GREY] / TEMPLATES[sequence][Tissue.CORD_WHITE]
    means[Tissue.CORD_GREY] = means[Tissue.CORD_WHITE] * (1 + (wanted - 1) * rng.uniform(0.4, 1.1))
    means[Tissue.BRAINSTEM] = means[Tissue.CORD_WHITE] * rng.normal(1.03, 0.02)
    return means.astype(np.float32)
