"""The methods text of a session, written from the facts, with the works it stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.recipe.model import Recipe
from bids_scseg.report.records import NOTHING

REFERENCES: Mapping[str, str] = {
    "walsh": "Walsh et al. MICCAI 2024. HAL hal-04668565.",
    "bids": "Gorgolewski KJ, et al. The brain imaging data structure, a format for organizing and "
    "describing outputs "
    "of neuroimaging experiments. Scientific Data 2016;3:160044. doi:10.1038/sdata.2016.44",
    "apps": "Gorgolewski KJ, et al. BIDS Apps: improving ease of use, accessibility, and reproducibility of "
    "neuroimaging data analysis methods. PLoS Computational Biology 2017;13:e1005209. "
    "doi:10.1371/journal.pcbi.1005209",
    "nipype": "Gorgolewski K, et al. Nipype: a flexible, lightweight and extensible neuroimaging data "
    "processing "
    "framework in Python. Frontiers in Neuroinformatics 2011;5:13. doi:10.3389/fninf.2011.00013",
    "pybids": "Yarkoni T, et al. PyBIDS: Python tools for BIDS datasets. Journal of Open Source Software "
    "2019;4(40):1294. doi:10.21105/joss.01294",
    "sct": "De Leener B, et al. SCT: Spinal Cord Toolbox, an open-source software for processing spinal "
    "cord MRI "
    "data. NeuroImage 2017;145:24-43. doi:10.1016/j.neuroimage.2016.10.009",
    "spine": "Warszawer Y, et al. TotalSpineSeg: Robust Spine Segmentation with Landmark-Based Labeling in "
    "MRI. Preprint, 2025. doi:10.13140/RG.2.2.31318.56649",
    "ants": "Avants BB, et al. A reproducible evaluation of ANTs similarity metric performance in brain "
    "image "
    "registration. NeuroImage 2011;54:2033-2044. doi:10.1016/j.neuroimage.2010.09.025",
    "nnunet": "Isensee F, et al. nnU-Net: a self-configuring method for deep learning-based biomedical image "
    "segmentation. Nature Methods 2021;18:203-211. doi:10.1038/s41592-020-01008-z",
    "numpy": "Harris CR, et al. Array programming with NumPy. Nature 2020;585:357-362. "
    "doi:10.1038/s41586-020-2649-2",
    "scipy": "Virtanen P, et al. SciPy 1.0: fundamental algorithms for scientific computing in Python. "
    "Nature "
    "Methods 2020;17:261-272. doi:10.1038/s41592-019-0686-2",
    "torch": "Paszke A, et al. PyTorch: an imperative style, high-performance deep learning library. "
    "Advances in "
    "Neural Information Processing Systems 2019;32.",
}

Imputation = Literal["mean", "voxel"]
SCT = "Spinal Cord Toolbox"  # how the words for levels begin where the toolbox labelled them
BY_HAND = "manual correction"  # how a cord mask's source begins where a reader corrected it
GIVEN_MASK = "given mask"  # and where it was given with the dataset
#: Programs that draw cord masks, by their names in :attr:`MethodsFacts.cord_sources`.
CORD_PROGRAMS: Mapping[str, str] = {
    "sct": "by the Spinal Cord Toolbox (sct_deepseg spinalcord) [@sct]",
    "builtin": "by the built-in, contrast-agnostic cord finder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsFacts:
    """What the methods text is written from.

    Attributes
    ----------
    version
        Version of this software.
    sequences
        (name, description) of the sequences used, in the recipe's order.
    absent
        Names of the recipe's sequences that the session lacks.
    anchor
        Sequence that gave the grid.
    cord_sources
        Sequence name to who drew its cord masks, each once: ``sct``, ``builtin``, or ``given mask`` and
        ``manual correction`` with the file's name.
    slabs
        (sequence, number of slabs) where there is more than one.
    registered
        Sequences whose slabs were registered rigidly (and the registration accepted).
    spacing_mm, window_vox, margin_mm
        Reference grid.
    given_geometry
        Name and checksum of the geometry that was applied instead of a fit; empty: it was fitted.
    model, model_sha256, validated
        The lesion model; ``validated`` is whether it was validated on patients.
    normalize
        How intensities were normalised, as in :class:`~bids_scseg.recipe.model.Recipe`.
    by_patch
        Whether a sequence that does not reach a patch counted as missing there.
    impute, skips
        How missing sequences are filled, and which skip connections the decoder sees.
    threshold, seed_thresholds, min_volume_mm3, connectivity, flips
        From probability to lesions; seed thresholds where several sequences see, and where one does (0: as
        elsewhere).
    device
        Where the network ran, in words.
    engine, engine_release, engine_meaning
        Network of another program that found the lesions instead (such as ``sct:lesion_ms``), that program's
        release, and what its values mean; empty for this program's own network.
    corrected, mask_origin
        Names of the lesion masks that a reader corrected, empty where nobody did; and ``manual``, or
        ``mixed`` where lesions of the model beyond those masks' fields of view stand.
    origin
        Where lengths along the cord start; empty if that is no anatomical place.
    levels_from
        Who labelled vertebral levels, as the session's column of that name says; empty without levels.
    whole_run
        Whether the text is about any session that the recipe serves, rather than one session.
    versions
        Library to version, for those that computed something.
    """

    version: str
    sequences: tuple[tuple[str, str], ...]
    anchor: str
    model: str
    threshold: float
    absent: tuple[str, ...] = ()
    cord_sources: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NOTHING)
    slabs: tuple[tuple[str, int], ...] = ()
    registered: tuple[str, ...] = ()
    spacing_mm: float = 0.5
    window_vox: tuple[int, int] = (48, 48)
    margin_mm: float = 10.0
    given_geometry: str = ""
    model_sha256: str = ""
    validated: bool = False
    impute: Imputation = "mean"
    skips: Literal["anchor", "mean"] = "anchor"
    seed_thresholds: tuple[float, float] = (0.0, 0.0)
    min_volume_mm3: float = 0.0
    connectivity: int = 26
    flips: bool = False
    normalize: Literal["coverage", "cord", "cord-ratio"] = "coverage"
    by_patch: bool = False
    device: str = ""
    engine: str = ""
    engine_release: str = ""
    engine_meaning: str = ""
    corrected: str = ""
    mask_origin: str = "model"
    origin: str = ""
    levels_from: str = ""
    whole_run: bool = False
    versions: Mapping[str, str] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """Paragraphs with numbered citations, and the numbered references."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def text(self) -> str:
        """Paragraphs separated by blank lines."""
        return "\n\n".join(self.paragraphs)


def compose(facts: MethodsFacts) -> Methods:
    """Write the methods text; references are numbered in the order of their first citation."""
    drafts = (
        _software(facts), _cord(facts), _slabs(facts), _grid(facts), _network(facts), _lesions(facts),
        _limits(facts),
    )  # fmt: skip
    return _numbered([draft for draft in drafts if draft])


def boilerplate(facts: MethodsFacts) -> str:
    """The methods text as Markdown with its references, for papers and logs."""
    methods = compose(facts)
    listed = "\n".join(f"{number}. {entry}" for number, entry in enumerate(methods.references, start=1))
    return f"## Methods\n\n{methods.text}\n\n## References\n\n{listed}\n"


def recipe_facts(
    recipe: Recipe,
    *,
    version: str,
    cord_source: str,
    model: str,
    threshold: float | None = None,
    seed_thresholds: tuple[float, float] | None = None,
    min_volume_mm3: float | None = None,
    model_sha256: str = "",
    versions: Mapping[str, str] = NOTHING,
    engine: str = "",
    engine_release: str = "",
    given_geometry: str = "",
) -> MethodsFacts:
    """Facts of a whole run, from what its recipe says; ``cord_source`` is ``sct`` or ``builtin``.

    ``given_geometry`` names the earlier run that gives some of the sessions theirs.
    """
    return MethodsFacts(
        version=version,
        sequences=tuple((rule.name, rule.description) for rule in recipe.sequences),
        anchor=recipe.anchors[0],
        model=model,
        threshold=recipe.inference.threshold if threshold is None else threshold,
        cord_sources={rule.name: (cord_source,) for rule in recipe.sequences},
        registered=tuple(rule.name for rule in recipe.sequences if rule.register_slabs),
        spacing_mm=recipe.grid.spacing_mm,
        window_vox=recipe.grid.window_vox or (0, 0),
        margin_mm=recipe.grid.margin_mm,
        model_sha256=model_sha256,
        impute=recipe.network.impute,
        skips=recipe.network.skips,
        seed_thresholds=(
            (recipe.inference.seed_threshold, recipe.inference.seed_threshold_alone)
            if seed_thresholds is None
            else seed_thresholds
        ),
        min_volume_mm3=recipe.inference.min_volume_mm3 if min_volume_mm3 is None else min_volume_mm3,
        connectivity=recipe.inference.connectivity,
        flips=recipe.inference.flips,
        normalize=recipe.normalize,
        by_patch=recipe.inference.by_patch,
        engine=engine,
        engine_release=engine_release,
        whole_run=True,
        versions=versions,
        given_geometry=given_geometry,
    )


def _numbered(drafts: Sequence[str]) -> Methods:
    """Turn marks such as ``[@bids]`` into numbers."""
    order: dict[str, int] = {}

    def number(mark: re.Match[str]) -> str:
        keys = mark.group(1).split(",")
        return "[" + ", ".join(str(order.setdefault(key, len(order) + 1)) for key in keys) + "]"

    written = tuple(re.sub(r"\[@([a-z,]+)\]", number, draft) for draft in drafts)
    return Methods(paragraphs=written, references=tuple(REFERENCES[key] for key in order))


def _listed(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def _software(facts: MethodsFacts) -> str:
    libraries = ("nipype", "pybids", "numpy", "scipy", "torch")
    stand_on = [f"{name} {facts.versions[name]} [@{name}]" for name in libraries if name in facts.versions]
    tail = f" It stands on {_listed(stand_on)}." if stand_on else ""
    names = [f"{name} ({words})" if words else name for name, words in facts.sequences]
    given = "Any subset is used of" if facts.whole_run else "The session provided"
    return (
        f"Spinal cord lesions were segmented with bids_scseg {facts.version}, a BIDS App [@bids,apps] that "
        f"follows the multi-sequence approach of Walsh et al. [@walsh]. {given} {_listed(names)}.{tail}"
    )


def _cord(facts: MethodsFacts) -> str:
    return (
        f"The cord was delineated in each image independently{_cord_sources(facts)}. Masks were reduced to "
        f"the parts that continue each other along the cord{_no_cord(facts)}; the centerline is their "
        "centre of mass in each slice, smoothed in millimetres. Where a sequence covers cord that its mask "
        "does not reach, its centerline follows the other sequences of the session with its own offset."
    )


def _no_cord(facts: MethodsFacts) -> str:
    """What was cut out of masks that a program found; nothing where people gave them all."""
    programs = {source for drawn in facts.cord_sources.values() for source in drawn} & set(CORD_PROGRAMS)
    if not programs:
        return ""
    # masks of the Toolbox hold no probabilities, by which roots are told
    roots = " and what was taken for nerve roots below it" if "builtin" in programs else ""
    return f", and from those that a program found, sections far too large for a cord{roots} were cut off"


def _cord_sources(facts: MethodsFacts) -> str:
    """Who drew the masks, in words; by sequence where they differ."""
    said: dict[str, list[str]] = {}
    for name, sources in facts.cord_sources.items():
        if sources:
            said.setdefault(_listed(_drawn(sources)), []).append(name)
    if len(said) == 1:
        return f" {next(iter(said))}"
    return "".join(f", {words} in {_listed(names)}" for words, names in said.items())


def _drawn(sources: Sequence[str]) -> list[str]:
    """Each kind of source once, in words; masks of people with their names."""
    kinds = {GIVEN_MASK: "by masks that were given", BY_HAND: "by masks that a reader corrected"}
    words: dict[str, list[str]] = {}
    for source in sources:
        kind = next((kind for kind in kinds if source.startswith(kind)), "")
        said = kinds.get(kind) or CORD_PROGRAMS.get(source, f"by {source}")
        words.setdefault(said, []).extend([source.removeprefix(kind).strip()] if kind else [])
    return [f"{said} ({', '.join(names)})" if names else said for said, names in words.items()]


def _slabs(facts: MethodsFacts) -> str:
    if not facts.slabs and not facts.whole_run:
        return ""
    which = _listed([f"{name} ({count})" for name, count in facts.slabs]) or "sequences acquired in several"
    text = (
        f"Overlapping slabs of {which} were combined, the uppermost staying in place and each serving half "
        "of an overlap."
    )
    if (
        facts.given_geometry and not facts.whole_run
    ):  # what registration or headers said, the earlier run knows
        return text
    if facts.registered:
        text += (
            f" Lower slabs of {_listed(facts.registered)} were registered rigidly to the one above with "
            "ANTs (mutual information) [@ants]."
        )
    others = [name for name, _ in facts.slabs if name not in facts.registered]
    return text + (f" For {_listed(others)} the alignment of the image headers stands." if others else "")


NORMALIZED = {
    "coverage": "standardised to zero mean and unit variance over covered voxels",
    "cord": "taken relative to the cord's own level along its length, in units of the cord's robust standard "
    f"deviation, and clipped at ±{CLIP:g}",
    "cord-ratio": "divided by the cord's own level along its length, less 1, in units of the robust standard "
    f"deviation of the cord's inside, and clipped at ±{CLIP:g}",
}


def _grid(facts: MethodsFacts) -> str:
    wide = " × ".join(f"{size * facts.spacing_mm:g}" for size in facts.window_vox)
    axes = "the anchor sequence" if facts.whole_run else facts.anchor
    if facts.given_geometry and facts.whole_run:
        given = (
            " For sessions that an earlier run had prepared, grid, placement of the slabs and centerlines "
            f"were not fitted again but taken from there ({facts.given_geometry})."
        )
    elif facts.given_geometry:
        given = (
            " Grid, placement of the slabs and centerlines were not fitted to these images again but taken "
            f"from an earlier run ({facts.given_geometry})."
        )
    else:
        given = ""
    return (
        f"All sequences were brought onto one grid of {facts.spacing_mm:g} mm along the axes of {axes}, in "
        f"windows of {wide} mm round each sequence's own centerline, over the union of the cord masks with "
        f"{facts.margin_mm:g} mm at each end. Slab fusion, alignment, resampling and cropping are one "
        "coordinate map, so that every image was interpolated once (linearly), without non-linear "
        f"registration. Intensities were {NORMALIZED[facts.normalize]}; "
        f"voxels that a sequence does not cover were set to zero and recorded as not examined.{given}"
    )


def _network(facts: MethodsFacts) -> str:
    if facts.engine:
        return _other_network(facts)
    weights = f", weights {facts.model_sha256[:12]}" if facts.model_sha256 else ""
    flips = " with left-right mirroring" if facts.flips else ""
    patches = ", where a sequence that does not reach a patch counted as missing," if facts.by_patch else ""
    device = f" on {facts.device}" if facts.device else ""
    anchor = "the anchor" if facts.whole_run else facts.anchor
    skips = "averaged over the available sequences" if facts.skips == "mean" else f"those of {anchor} alone"
    return (
        "Lesion probabilities come from a U-shaped convolutional network with one encoder per sequence, "
        "whose features are combined at the bottleneck [@walsh,nnunet] (model "
        f"{facts.model}{weights}).{_imputed(facts)} Skip connections were {skips}. It was applied in "
        f"overlapping patches along the cord{patches}{flips}{device}."
    )


def _other_network(facts: MethodsFacts) -> str:
    """Late fusion of what the Spinal Cord Toolbox says of each image."""
    release = f" {facts.engine_release}" if facts.engine_release else ""
    meaning = f" The value is this: {facts.engine_meaning}." if facts.engine_meaning else ""
    return (
        f"Lesions were found by the network {facts.engine.partition(':')[2]} of the Spinal Cord Toolbox"
        f"{release} (sct_deepseg) [@sct], run on each acquired image by itself. Its maps were brought onto "
        "the common grid by the same coordinate map and averaged, at each place over the sequences that "
        f"cover it (late fusion); missing sequences have no say.{meaning}"
    )


def _imputed(facts: MethodsFacts) -> str:
    if not facts.absent and not facts.whole_run:
        return ""
    which = f" ({_listed(facts.absent)})" if facts.absent else ""
    where = (
        "at each place, of the sequences that cover it" if facts.impute == "voxel" else "of those available"
    )
    return f" Missing sequences{which} were imputed by the mean of the features {where}."


def _lesions(facts: MethodsFacts) -> str:
    small = f"; lesions under {facts.min_volume_mm3:g} mm³ were dropped" if facts.min_volume_mm3 > 0 else ""
    word = "fused value" if facts.engine else "probability"
    sure = _sure(facts, word)
    return (
        f"Voxels with a {word} of at least {facts.threshold:g} were taken as lesion, and "
        f"{facts.connectivity}-connected voxels as one lesion{sure}{small}. What lay above or below the "
        "ends of the session's cord masks was removed, and so were components that touched no cord although "
        f"their slices had some.{_corrected(facts)} Lesions were numbered and measured once, in the common "
        "space, which preserves volume, and restored to the native images with that volume: each took the "
        "voxels that it filled most, as many as make up its volume there. Probabilities were restored by "
        "averaging over each voxel's footprint. Lengths are arc lengths of the centerline; "
        f"positions count from {_origin(facts)}.{_levels(facts)}"
    )


def _sure(facts: MethodsFacts, word: str) -> str:
    """Which value a lesion must reach somewhere."""
    several, alone = (seed if seed > facts.threshold else 0.0 for seed in facts.seed_thresholds)
    if not several and not alone:
        return ""
    if not alone or alone == several:
        return f"; lesions whose {word} nowhere reached {several:g} were dropped"
    if not several:
        return (
            f"; lesions that one sequence alone sees and whose {word} nowhere reached {alone:g} were dropped"
        )
    one = f"{alone:g} where one sequence alone sees"
    return f"; lesions whose {word} nowhere reached {several:g} ({one}) were dropped"


def _levels(facts: MethodsFacts) -> str:
    """Where vertebral levels come from."""
    if not facts.levels_from:
        return ""
    if facts.levels_from.startswith(SCT):
        return (
            " Intervertebral discs, the borders of vertebral levels, were labelled on the images of "
            f"{facts.anchor} by the spine model of the {facts.levels_from} [@sct,spine]."
        )
    return f" Vertebral levels follow {facts.levels_from}."


def _corrected(facts: MethodsFacts) -> str:
    """What a reader's masks did to the model's decision."""
    if not facts.corrected:
        return ""
    beyond = (
        " Lesions of the model beyond the field of view of that correction stand."
        if facts.mask_origin == "mixed"
        else ""
    )
    return (
        f" A reader then corrected this segmentation by hand ({facts.corrected}): lesions that the reader "
        "left as they were keep the shape found by the network, all others are the voxels that the reader "
        "drew."
        f"{beyond} Probabilities are those of the network."
    )


def _origin(facts: MethodsFacts) -> str:
    top = (
        "the top of the prepared cord (the uppermost cord mask and margin), which is no anatomical origin "
        "and forbids comparison between sessions"
    )
    if facts.whole_run:
        return f"the C2-C3 disc or the pontomedullary junction where labels give them, else from {top}"
    return f"the {facts.origin}" if facts.origin else top


def _limits(facts: MethodsFacts) -> str:
    purpose = "the software is for research and not a medical device."
    if facts.validated:
        return purpose.capitalize()
    if facts.engine:
        return (
            "The fused value is no probability, and fusion and threshold were not validated on patients. "
            f"Results need a reader's review; {purpose}"
        )
    return f"The model {facts.model} was not validated on patients. Results need a reader's review; {purpose}"
