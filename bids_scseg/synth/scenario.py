"""What a session of the demo dataset contains: its sequences, lesions, special cases and distractors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bids_scseg.synth.subject import Rng

Distractor = Literal["brain", "gadolinium", "phase", "mt", "rerun"]

#: The six sequences of the default recipe.
SIX = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")
#: Order of preference of the anchor; the first present is the session's reference frame.
ANCHORS = ("T2Sag", "STIR", "T1Sag", "MP2RAGE", "T2Ax", "T2StarAx", "PSIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One session.

    Attributes
    ----------
    name
        A word for the participants table.
    sequences
        Sequences scanned.
    slabs
        Slabs of the sagittal T2w (and of STIR, two at most).
    lesions
        Number of lesions; None draws it.
    seam
        Whether a lesion lies across the first slab seam.
    distractors
        Other images in the folder that are no sequence of the recipe, and repeated runs.
    oblique
        Whether the sagittal scans are turned about two axes.
    misplacement_mm
        Size of the shift between slabs.
    displacement_mm
        Largest shift of the subject between sequences.
    compact
        Whether fields of view are cut down to the surroundings of the cord (for training).
    """

    name: str
    sequences: tuple[str, ...] = SIX
    slabs: int = 2
    lesions: int | None = None
    seam: bool = False
    distractors: tuple[Distractor, ...] = ()
    oblique: bool = False
    misplacement_mm: float = 2.0
    displacement_mm: float = 2.0
    compact: bool = False


#: Each entry is one subject; a second session follows where there are two scenarios. Subjects cycle through
#: them.
SUBJECTS: tuple[tuple[Scenario, ...], ...] = (
    (Scenario(name="complete", lesions=4, seam=True, distractors=("brain", "rerun", "phase")),),
    (
        Scenario(name="two-sessions", slabs=3, lesions=3, distractors=("gadolinium", "mt"), oblique=True),
        Scenario(name="two-sessions", sequences=("T2Sag", "STIR", "T2StarAx", "MP2RAGE"), lesions=4,
                 oblique=True),
    ),
    (Scenario(name="no-sagittal-T2w", sequences=("STIR", "T2StarAx", "T1Sag", "MP2RAGE"), lesions=3,
              distractors=("brain",)),),
    (Scenario(name="lesion-free", lesions=0, distractors=("mt",)),),
    (Scenario(name="sagittal-only", sequences=("T2Sag", "T1Sag"), lesions=2, oblique=True),),
    (Scenario(name="axial-only", sequences=("T2Ax", "T2StarAx"), lesions=2, distractors=("phase",)),),
    (Scenario(name="seam-three-slabs", sequences=("T2Sag", "STIR", "T2Ax"), slabs=3, lesions=3, seam=True),),
    (Scenario(name="random"),),
)  # fmt: skip


def training_scenario(rng: Rng, sequences: tuple[str, ...] = SIX) -> Scenario:
    """A random session for training: all sequences, compact, slabs as after a registration."""
    return replace(
        Scenario(name="training", sequences=sequences),
        slabs=int(rng.integers(1, 4)),
        oblique=bool(rng.random() < 0.3),
        misplacement_mm=0.4,
        displacement_mm=float(rng.uniform(0.2, 1.5)),
        seam=bool(rng.random() < 0.3),
        compact=True,
    )
