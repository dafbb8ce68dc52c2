"""The recipe: everything that distinguishes one segmentation task from another, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Plane = Literal["sag", "ax", "cor", "iso"]
Polarity = Literal["hyper", "hypo", "iso-hypo"]
Family = Literal["plain", "resenc", "attgate", "se", "cbam", "nonlocal", "swinunetr", "mednext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRule:
    """One MR sequence of a recipe and how its files are recognised.

    Attributes
    ----------
    name
        Key of the sequence, such as ``T2Sag``.
    suffixes
        Suffixes that can hold it, such as ``("T2w",)``; each of the keywords is one too.
    planes
        Slice planes, computed from the header, in which it is acquired.
    extensions of the rule
        ``inversion_recovery``: True if the sidecar or the entities must say inversion recovery
        (STIR), False if they must not, None if it does not matter.
    keywords
        Lower-case words which, found in acq-/desc-/rec- entities, suffix or the sidecar's SequenceName,
        SeriesDescription or ProtocolName, mark a file as this sequence.
    excluded_keywords
        Words that rule it out.
    polarity
        How lesions look against the cord (``hyper``, ``hypo``, ``iso-hypo``).
    register_slabs
        Whether overlapping slabs are registered rigidly (sagittal sequences only, in the paper).
    description
        One line for people.
    """

    name: str
    suffixes: tuple[str, ...]
    planes: tuple[Plane, ...]
    inversion_recovery: bool | None = None
    keywords: tuple[str, ...] = ()
    excluded_keywords: tuple[str, ...] = ()
    polarity: Polarity = "hyper"
    register_slabs: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """The reference grid that a recipe asks for.

    Attributes
    ----------
    spacing_mm
        Isotropic voxel size, mm.
    window_vox
        In-plane size of the window round the centerline, voxels (None: the whole image).
    margin_mm
        Added beyond the union of the cord masks at each end of the S-I axis, mm.
    """

    spacing_mm: float = 0.5
    window_vox: tuple[int, int] | None = (48, 48)
    margin_mm: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A network, as data.

    Attributes
    ----------
    family
        Architecture of encoders and decoder (docs/networks.md); ``plain`` is the paper's.
    channels
        Channels of each stage, from full resolution to the bottleneck.
    strides
        Downsampling on entry to each stage; the first is (1, 1, 1); third axis is S-I.
    sequences
        Names of the input sequences, in channel order; one encoder each.
    classes
        Output classes including background.
    impute
        How missing sequences are filled at the bottleneck: ``mean`` (per subject) or ``voxel`` (by coverage).
    skips
        ``anchor``: skips of the anchor's encoder only; ``mean``: mean over available sequences.
    deep_supervision
        Number of decoder outputs that are supervised in training (2 in the paper).
    fusion
        How the sequences' bottleneck features become one set: ``linear`` (the paper's pointwise convolution)
        or ``attention`` (cross-attention over the available ones). One sequence alone is not fused.
    """

    family: Family = "plain"
    channels: tuple[int, ...] = (32, 64, 128, 256, 320)
    strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2))
    sequences: tuple[str, ...] = ("T2Sag",)
    classes: int = 2
    impute: Literal["mean", "voxel"] = "mean"
    skips: Literal["anchor", "mean"] = "anchor"
    deep_supervision: int = 2
    fusion: Literal["linear", "attention"] = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSpec:
    """How a trained network is applied.

    Attributes
    ----------
    patch_vox
        Patch size along grid axes (R, A, S).
    overlap
        Fraction by which neighbouring patches overlap.
    threshold
        Probability from which a voxel is lesion, if the model bundle states none.
    seed_threshold
        Instances in which no voxel's probability is this high are dropped (hysteresis); 0: none is.
    seed_threshold_alone
        The same for voxels that one sequence alone covers, at least as high; 0: as elsewhere.
    min_volume_mm3
        Smaller instances are dropped, mm³.
    connectivity
        Neighbourhood by which voxels form one lesion: 6, 18 or 26.
    flips
        Whether mirrored copies along R-L are averaged in.
    by_patch
        Whether a sequence that covers no voxel of a window counts as missing there (needs ``skips: mean``).
    """

    patch_vox: tuple[int, int, int] = (48, 48, 320)
    overlap: float = 0.5
    threshold: float = 0.5
    seed_threshold: float = 0.0
    seed_threshold_alone: float = 0.0
    min_volume_mm3: float = 0.0
    connectivity: Literal[6, 18, 26] = 26
    flips: bool = False
    by_patch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A segmentation task.

    Attributes
    ----------
    name, version
        Identity; both are recorded in every output.
    frame
        Name of the frame in which images are prepared: ``centerline``, ``rigid`` or ``box``.
    target
        What is segmented, in words, such as ``lesion``.
    sequences
        The rules, in the network's channel order.
    anchors
        Sequence names, best anchor first.
    normalize
        ``coverage``: z-score over covered voxels; ``cord``: contrast against the cord, in units of the
        cord's spread; ``cord-ratio``: the same of values relative to the cord's level, without its edge.
    grid, network, inference
        See their types.
    references
        Literature behind the recipe, one citation per entry.
    """

    name: str
    version: str
    frame: Literal["centerline", "rigid", "box"]
    target: str
    sequences: tuple[SequenceRule, ...]
    anchors: tuple[str, ...]
    normalize: Literal["coverage", "cord", "cord-ratio"] = "coverage"
    grid: GridSpec = field(default_factory=GridSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    inference: InferenceSpec = field(default_factory=InferenceSpec)
    references: tuple[str, ...] = ()

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """Names of the sequences in channel order."""
        return tuple(rule.name for rule in self.sequences)

    def rule(self, name: str) -> SequenceRule:
        """The rule of that name (KeyError if there is none)."""
        for rule in self.sequences:
            if rule.name == name:
                return rule
        raise KeyError(name)

    def best_anchor(self, available: tuple[str, ...]) -> str | None:
        """First anchor, in order of preference, among the available sequences; None without any."""
        return next((name for name in self.anchors if name in available), None)
