"""Which sequence of a recipe an image is, or why it is none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bids_scseg.recipe.model import Plane, Recipe, SequenceRule
from bids_scseg.recipe.study import ImageFile
from bids_scseg.space.grid import Grid

# Short-tau inversion recovery nulls fat: 130-180 ms at 1.5 T, 200-230 ms at 3 T; widened (ours). Inversion
# times of MPRAGE and T1-FLAIR (0.7-1.1 s) and of FLAIR (1.6-2.8 s) lie above.
SHORT_TAU_S = (0.08, 0.35)
LONGEST_TAU_S = 20.0  # larger numbers are milliseconds

DESCRIPTION_KEYS = ("SeriesDescription", "ProtocolName", "SequenceName")
DESCRIPTION_ENTITIES = ("acq", "desc", "rec")
PLANE_WORDS: dict[str, Plane] = {
    "sag": "sag", "sagittal": "sag", "ax": "ax", "axial": "ax", "tra": "ax", "trans": "ax",
    "transverse": "ax", "transversal": "ax", "cor": "cor", "coronal": "cor",
}  # fmt: skip
PLANE_NAMES = {"sag": "sagittal", "ax": "axial", "cor": "coronal", "iso": "isotropic"}
BRAIN_WORDS = frozenset(
    {"brain", "head", "cranial", "cranium", "cerebral", "cerebrum", "encephalon", "skull"}
)
SPINE_WORDS = frozenset(
    {
        "spine",
        "spinal",
        "cord",
        "cervical",
        "thoracic",
        "lumbar",
        "neck",
        "cspine",
        "tspine",
        "lspine",
        "myelon",
    }
)
LOCALIZER_WORDS = frozenset({"localizer", "localiser", "localizers", "scout", "survey", "tripilot", "3plane"})
# Reformats and other images that a scanner computes; composed whole-spine images are kept.
COMPUTED_TYPES = frozenset(
    {"MPR", "MIP", "MIN_IP", "PROJECTION IMAGE", "SUBTRACTION", "SCREEN SAVE", "ADC", "FA"}
)
PHASE_TYPES = frozenset({"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"})
AGENT_KEYS = ("ContrastBolusAgent", "ContrastBolusIngredient")
NO_AGENT = frozenset({"", "none", "no", "n/a", "na", "0", "false"})
T1_SUFFIXES = frozenset({"T1w", "UNIT1"})  # on which a contrast agent changes what lesions look like
KNOWN_SUFFIXES = {
    "MTR": "a magnetisation transfer image", "MTS": "a magnetisation transfer image",
    "MTsat": "a magnetisation transfer map", "MTRmap": "a magnetisation transfer map",
    "FLAIR": "FLAIR, a brain sequence", "MP2RAGE": "an inversion image of MP2RAGE (UNIT1 is the one used)",
    "defacemask": "a mask", "angio": "an angiogram",
}  # fmt: skip
NOT_MARKED = "neither name nor sidecar says"
# Extent of a head scan (ours): from side to side wider than sagittal or isotropic scans of the spine are, and
# lower than a head-and-neck volume that shows the cervical cord.
HEAD_WIDTH_MM, HEAD_DEPTH_MM, HEAD_HEIGHT_MM = 150.0, 170.0, (130.0, 270.0)
NEARLY_CUBES = 1.6  # longest against shortest side of a coronal volume's voxels (ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Outcome of matching one image.

    Attributes
    ----------
    image
        The image.
    sequence
        Name of the sequence that it is; None if it is none.
    reason
        Why it is none, in words.
    warnings
        Doubts about the decision, one sentence each.
    """

    image: ImageFile
    sequence: str | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def match_image(image: ImageFile, recipe: Recipe) -> Match:
    """Match one image to the recipe's sequences.

    Parameters
    ----------
    image
        With header and sidecar read.
    recipe
        Its rules are tried in order; the first that fits wins, and further ones are named in a warning.

    Returns
    -------
    Match
        With a sequence, or with the reason why there is none.
    """
    reason = exclusion(image, recipe)
    if reason:
        return Match(image=image, reason=reason)
    fits, reasons = [], []
    for rule in recipe.sequences:
        if image.suffix in rule.suffixes:
            why = mismatch(image, rule)
            fits += [rule.name] if why is None else []
            reasons += [f"not {rule.name}: {why}"] if why is not None else []
    if not fits:
        telling = [reason for reason in reasons if NOT_MARKED not in reason] or reasons
        return Match(image=image, reason="; ".join([*telling, *image.warnings]))
    notes = list(image.warnings) + _doubts(image)
    if recipe.frame == "centerline" and _head_by_body_part(image):
        notes.append(f"its sidecar says body part {_body_part(image)}; make sure that it shows the cord")
    if len(fits) > 1:
        notes.append(f"could be {' or '.join(fits)}; taken as {fits[0]}")
    return Match(image=image, sequence=fits[0], warnings=tuple(notes))


def exclusion(image: ImageFile, recipe: Recipe) -> str | None:
    """Why an image is none of the recipe's sequences whatever its contrast; None if nothing says so."""
    if image.problem:
        return image.problem
    if not image.named:
        return f"not a BIDS name for a raw image (suffix {image.suffix}); rename it or use a filter file"
    if not any(image.suffix in rule.suffixes for rule in recipe.sequences):
        return _not_in_recipe(image)
    for check in (_contrast_agent, _magnetisation_transfer, _not_magnitude, _computed):
        reason = check(image)
        if reason:
            return reason
    return _brain(image) if recipe.frame == "centerline" else None


def mismatch(image: ImageFile, rule: SequenceRule) -> str | None:
    """Why an image of a fitting suffix is not the sequence of that rule; None if it is."""
    banned = [word for word in rule.excluded_keywords if has_word(image, word)]
    if banned:
        return f"{banned[0]} in its name or sidecar"
    marked = any(has_word(image, word) for word in rule.keywords)
    short_tau = _is_short_tau(image)
    if rule.inversion_recovery is False and short_tau:
        return "its sidecar says short-tau inversion recovery"
    if (
        rule.inversion_recovery is False
        and (inversion_time(image) or 0) > SHORT_TAU_S[1]
        and image.suffix != "T1w"
    ):
        return f"inversion recovery with {inversion_time(image):g} s"
    needs_mark = bool(rule.keywords) and not (rule.inversion_recovery and short_tau)
    if needs_mark and not marked:
        return f"{NOT_MARKED} {' or '.join(rule.keywords)}"
    plane = image_plane(image)
    if not {plane, *_coronal(image)} & set(rule.planes):
        wanted = " or ".join(PLANE_NAMES[name] for name in rule.planes)
        return f"{PLANE_NAMES[plane]} slices, expected {wanted}"
    return None


def image_plane(image: ImageFile) -> Plane:
    """Slice plane from the header; where voxels are isotropic, the plane that the name or sidecar states."""
    plane = header_plane(_grid(image))
    stated = _stated_plane(image)
    return stated if plane == "iso" and stated else plane


def header_plane(grid: Grid) -> Plane:
    """Slice plane of a lattice; coronal volumes whose voxels are nearly cubes count as isotropic.

    No sequence of the spine is known by coronal slices, and thin ones (0.8 x 1.2 x 0.8 mm) are those of 3-D
    scans that show the cord as well as any other.
    """
    plane: Plane = grid.plane()  # type: ignore[assignment]
    thin = grid.spacing.max() <= NEARLY_CUBES * grid.spacing.min()
    return "iso" if plane == "cor" and thin else plane


def inversion_time(image: ImageFile) -> float | None:
    """Inversion time in seconds, None if the sidecar has none."""
    value = dict(image.sidecar).get("InversionTime")
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return value / 1000 if value > LONGEST_TAU_S else float(value)


def has_word(image: ImageFile, word: str) -> bool:
    """Whether a word occurs in the describing entities or sidecar fields (short words as whole words)."""
    texts = _texts(image)
    if len(word) >= 4:
        return any(word in text.lower() for text in texts)
    return any(word in split_words(text) for text in texts)


def split_words(text: str) -> list[str]:
    """Lower-case words of a name: ``axT2w`` -> ax, t2, w; ``t2_tse_sag`` -> t2, tse, sag."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[A-Za-z]*", text)]


def looks_like_head(grid: Grid) -> bool:
    """Whether a sagittal or isotropic volume has the extent of a head rather than of a spine."""
    return header_plane(grid) in ("iso", "sag") and has_head_extent(grid)


def has_head_extent(grid: Grid) -> bool:
    """Whether a volume of any plane is as wide, deep and high as scans of heads are."""
    right, anterior, superior = (grid.shape[axis] * grid.spacing[axis] for axis, _ in grid.canonical_axes())
    low, high = HEAD_HEIGHT_MM
    return bool(right >= HEAD_WIDTH_MM and anterior >= HEAD_DEPTH_MM and low <= superior < high)


def _grid(image: ImageFile) -> Grid:
    if image.grid is None:
        raise ValueError(f"{image.relative} has no usable header")
    return image.grid


def _coronal(image: ImageFile) -> set[Plane]:
    """``cor`` where slices are, however thin, for rules that name that plane; else empty."""
    return {"cor"} if _grid(image).plane() == "cor" else set()


def _texts(image: ImageFile) -> list[str]:
    sidecar = dict(image.sidecar)
    entities = dict(image.entities)
    texts = [entities[key] for key in DESCRIPTION_ENTITIES if key in entities]
    return texts + [str(sidecar[key]) for key in DESCRIPTION_KEYS if key in sidecar]


def _words(image: ImageFile) -> set[str]:
    """Words of the describing texts."""
    return {word for text in _texts(image) for word in split_words(text)}


def _stated_plane(image: ImageFile) -> Plane | None:
    """Plane that entities state, else the sidecar; None if nothing or two planes are stated."""
    for texts in ([image.entity("acq") or ""], _texts(image)):
        planes = {PLANE_WORDS[word] for text in texts for word in split_words(text) if word in PLANE_WORDS}
        if len(planes) == 1:
            return planes.pop()
    return None


def _image_types(image: ImageFile) -> set[str]:
    return {part.strip().upper() for part in str(dict(image.sidecar).get("ImageType", "")).split("\\")}


def _is_short_tau(image: ImageFile) -> bool:
    """Whether the sidecar says short-tau inversion recovery (T1-weighted images must be named as such)."""
    if image.suffix == "T1w":
        return False
    tau = inversion_time(image)
    if tau is not None:
        return SHORT_TAU_S[0] <= tau <= SHORT_TAU_S[1]
    scanning = str(dict(image.sidecar).get("ScanningSequence", "")).upper()
    return "IR" in re.split(r"[^A-Z]+", scanning)


def _contrast_agent(image: ImageFile) -> str | None:
    if image.entity("ce"):
        return f"post-contrast (ce-{image.entity('ce')})"
    agent = _agent(image)
    return f"post-contrast ({agent} in its sidecar)" if agent and image.suffix in T1_SUFFIXES else None


def _agent(image: ImageFile) -> str:
    """Contrast agent that the sidecar names, empty if none."""
    sidecar = dict(image.sidecar)
    named = (str(sidecar.get(key, "")).strip() for key in AGENT_KEYS)
    return next((agent for agent in named if agent.lower() not in NO_AGENT), "")


def _magnetisation_transfer(image: ImageFile) -> str | None:
    if image.entity("mt") or dict(image.sidecar).get("MTState") is True:
        return "a magnetisation transfer image, no sequence of this recipe"
    return None


def _not_magnitude(image: ImageFile) -> str | None:
    part = image.entity("part")
    if part and part != "mag":
        return f"not a magnitude image (part-{part})"
    if image.entity("inv"):
        return f"one inversion (inv-{image.entity('inv')}) of a combined image"
    types = _image_types(image) & PHASE_TYPES
    if types and not _image_types(image) & {"M", "MAGNITUDE"} and image.suffix != "UNIT1":
        return f"not a magnitude image (ImageType {', '.join(sorted(types))})"
    return None


def _computed(image: ImageFile) -> str | None:
    types = _image_types(image)
    if types & COMPUTED_TYPES:
        return f"computed by the scanner (ImageType {', '.join(sorted(types & COMPUTED_TYPES))})"
    if types & {"LOCALIZER"} or _words(image) & LOCALIZER_WORDS:
        return "a localizer"
    return None


def _brain(image: ImageFile) -> str | None:
    """Whether name, sidecar and extent say that a scan shows the head and not the spine.

    The body part alone does not: it is what the operator registered, and heads are scanned with the cord.
    """
    words = _words(image)
    if words & BRAIN_WORDS and not words & SPINE_WORDS:
        return f"a brain scan ({', '.join(sorted(words & BRAIN_WORDS))} in its name or sidecar)"
    if image.suffix == "UNIT1" or (words | set(split_words(_body_part(image)))) & SPINE_WORDS:
        return None
    grid = _grid(image)
    if _head_by_body_part(image) and has_head_extent(grid):
        return f"a brain scan (body part {_body_part(image)}, and the extent of a head)"
    if looks_like_head(grid):
        return "a brain scan by its extent; if it shows the cord, select it by a filter file"
    return None


def _body_part(image: ImageFile) -> str:
    """Body part that the sidecar states, empty if none."""
    sidecar = dict(image.sidecar)
    return str(sidecar.get("BodyPartExamined", sidecar.get("BodyPart", "")))


def _head_by_body_part(image: ImageFile) -> bool:
    """Whether the stated body part is the head, and nothing else names the spine."""
    part = set(split_words(_body_part(image)))
    return bool(part & BRAIN_WORDS) and not (part | _words(image)) & SPINE_WORDS


def _doubts(image: ImageFile) -> list[str]:
    """What a reader should look at although the image is used."""
    notes = []
    header, stated = header_plane(_grid(image)), _stated_plane(image)
    if stated and header not in ("iso", stated):
        notes.append(
            f"named {PLANE_NAMES[stated]}, but its slices are {PLANE_NAMES[header]}; the header counts"
        )
    if image.suffix == "UNIT1" and looks_like_head(_grid(image)):
        notes.append("has the extent of a head scan; only the upper cord may be in view")
    if _agent(image):
        notes.append(f"was acquired after a contrast agent ({_agent(image)})")
    if not image.quality:
        notes.append("is rated as of poor quality, and nothing better covers its range")
    return notes


def _not_in_recipe(image: ImageFile) -> str:
    known = KNOWN_SUFFIXES.get(image.suffix)
    if known is None and image.suffix.endswith("map"):
        known = "a quantitative map"
    return f"{known or 'suffix ' + image.suffix}, no sequence of this recipe"
