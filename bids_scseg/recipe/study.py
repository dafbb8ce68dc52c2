"""What one session of one subject has, and which file serves which sequence: plain data, paths only."""

from __future__ import annotations

from dataclasses import dataclass

from bids_scseg.space.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One image of a dataset with the facts that matching needs.

    Attributes
    ----------
    path
        Absolute path of the NIfTI file.
    relative
        Path relative to the dataset's root, with forward slashes.
    entities
        BIDS entities as strings, in the order of the file name, without suffix.
    suffix
        BIDS suffix such as ``T2w``.
    grid
        Lattice from the header; None where the header cannot be used (``problem`` says why).
    sidecar
        Metadata that matching and reports use, as strings or numbers.
    problem
        Why this image cannot be used, in words; None if it can.
    named
        Whether the file's name follows BIDS; if not, only an explicit filter selects it.
    warnings
        What is odd about the image without forbidding its use, one sentence each.
    quality
        Verdict on the image in a ``scans.tsv`` or sidecar: False if rated unusable or poor.
    """

    path: str
    relative: str
    entities: tuple[tuple[str, str], ...]
    suffix: str
    grid: Grid | None = None
    sidecar: tuple[tuple[str, str | float | bool], ...] = ()
    problem: str | None = None
    named: bool = True
    warnings: tuple[str, ...] = ()
    quality: bool = True

    def entity(self, key: str) -> str | None:
        """Value of an entity, None if absent."""
        return dict(self.entities).get(key)

    @property
    def stem(self) -> str:
        """File name without ``.nii`` or ``.nii.gz``."""
        return self.name.removesuffix(".gz").removesuffix(".nii")

    @property
    def name(self) -> str:
        """File name."""
        return self.relative.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All candidate images of one session."""

    subject: str
    session: str | None
    dataset: str
    images: tuple[ImageFile, ...]

    @property
    def label(self) -> str:
        """``sub-X`` or ``sub-X_ses-Y``."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencePlan:
    """The file or files (slabs, uppermost first) that serve one sequence."""

    name: str
    files: tuple[ImageFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done for one session.

    Attributes
    ----------
    subject, session
        BIDS labels without prefix.
    dataset
        Absolute path of the raw dataset.
    recipe
        Name of the recipe.
    sequences
        Those that are present, in the recipe's order.
    missing
        Names of absent sequences.
    anchor
        Sequence that gives grid and outputs; None if the session has nothing usable.
    left_out
        (relative path, reason) of images that are not used.
    warnings
        Ambiguities and other matters to show, one sentence each.
    cord_masks
        (relative path of image, absolute path of mask) of masks the user has.
    sct_masks
        Relative paths of those of these images whose mask the Spinal Cord Toolbox made, by its own record.
    labels
        Absolute paths of disc or vertebra label images usable for levels.
    memory_gb, seconds
        Estimates for this session on CPU: the largest memory of the worker that runs it, and the time.
    node_memory
        (kind of node, GB) of which that is the largest.
    inference_gb
        Largest memory of the inference process, which all sessions share.
    refusal
        Why the session cannot be segmented, in words; None if it can (then there is an anchor).
    geometry
        Absolute path of an earlier run's geometry that is applied instead of a fit; empty: it is fitted.
    corrections
        (relative path of the image on which it was drawn or empty, absolute path) of lesion masks that a
        reader has corrected: they take the place of the model's decision.
    conflict
        Why files that readers corrected cannot be used, in words; empty if they can. The session fails.
    impute
        How the recipe's network fills missing sequences: ``mean`` or ``voxel``; ``late`` where each image is
        segmented by itself, so that nothing is filled.
    """

    subject: str
    session: str | None
    dataset: str
    recipe: str
    sequences: tuple[SequencePlan, ...]
    missing: tuple[str, ...]
    anchor: str | None
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    cord_masks: tuple[tuple[str, str], ...] = ()
    sct_masks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    memory_gb: float = 0.0
    seconds: float = 0.0
    node_memory: tuple[tuple[str, float], ...] = ()
    inference_gb: float = 0.0
    refusal: str | None = None
    impute: str = "mean"
    geometry: str = ""
    corrections: tuple[tuple[str, str], ...] = ()
    conflict: str = ""

    @property
    def label(self) -> str:
        """``sub-X`` or ``sub-X_ses-Y``."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def available(self) -> tuple[str, ...]:
        """Names of the sequences present."""
        return tuple(sequence.name for sequence in self.sequences)
