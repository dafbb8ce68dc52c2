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
        "ctspine",
        "tlspine",
        "lsspine",
        "wholespine",
        "headneck",
        "cerv",
        "myelon",
        "hws",
        "bws",
        "lws",
        "rachis",
        "moelle",
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
INVERSION_SUFFIXES = frozenset({"IRT2"})  # of inversion recovery, as ScanningSequence IR says it
# Words and image types of Dixon scans: Siemens and GE write words, Philips W, F, IP and OP.
DIXON_WORDS = frozenset({"dixon", "ideal"})
DIXON_KINDS = {
    "f": "fat", "fat": "fat", "w": "water", "water": "water",
    "in": "in-phase", "ip": "in-phase", "inphase": "in-phase",
    "out": "opposed-phase", "op": "opposed-phase", "opp": "opposed-phase", "opposed": "opposed-phase",
    "opposedphase": "opposed-phase", "outphase": "opposed-phase", "outofphase": "opposed-phase",
    "oppphase": "opposed-phase", "fatfraction": "fat", "ff": "fat",
}  # fmt: skip
DIXON_RUN_ON = re.compile("m?dixon", re.IGNORECASE)  # as in sagdixonF
NO_DIXON_LETTER = re.compile(r"(t[12]|star|pd)w(?![a-z])", re.IGNORECASE)  # the w of T2w is not water
NOT_OF_FAT = frozenset({"sat", "saturated", "saturation", "sup", "supp", "suppressed", "suppression"})
T1_SUFFIXES = frozenset({"T1w", "UNIT1"})  # on which a contrast agent changes what lesions look like
KNOWN_SUFFIXES = {
    "MTR": "a magnetisation transfer image", "MTS": "a magnetisation transfer image",
    "MTsat": "a magnetisation transfer map", "MTRmap": "a magnetisation transfer map",
    "FLAIR": "FLAIR, a brain sequence", "MP2RAGE": "an inversion image of MP2RAGE (UNIT1 is the one used)",
    "defacemask": "a mask", "angio": "an angiogram",
}  # fmt: skip
NOT_MARKED = "neither name nor sidecar says"
# Extent of a sagittal or isotropic head scan (ours). Sagittal stacks of the cord are 40-80 mm from side to
# side (15-25 slices of 2-4 mm), 3-D volumes of it up to 90 mm; those of heads 110 mm or more (22 slices of
# 5 mm, 144-192 of 1 mm). Heads are 180 mm deep; fields of 280 mm along the body (head and neck, whole-spine
# coils) reach far down the cord, and crops of less than 130 mm hold no head.
HEAD_WIDTH_MM, HEAD_DEPTH_MM, HEAD_HEIGHT_MM = 100.0, 170.0, (130.0, 280.0)
# Extent of an axial head scan (ours): right-left, anterior-posterior, and the height covered; 170 mm because
# rectangular fields are narrower across. Axial stacks of the cord have fields of 140-220 mm and cover
# 30-125 mm, so that the two overlap: a doubt, never a verdict.
AXIAL_HEAD_MM, AXIAL_HEAD_HEIGHT_MM = (170.0, 200.0), (90.0, 200.0)
NECK_COIL_MM = 200.0  # along the body: sagittal images so long show the cord, though registered as a head's
BY_EXTENT = "a brain scan by its extent; if it shows the cord, select it by a filter file"
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
    head
        Whether it has the extent of a head scan: it gives way to images that have not, and is no slab.
    spare
        Where `sequence` is None: which it is, head included, if the session has no other image of it.
    """

    image: ImageFile
    sequence: str | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    head: bool = False
    spare: str | None = None


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
    fits, reasons = _fits(image, recipe) if reason in (None, BY_EXTENT) else ([], [])
    if reason:
        spare = fits[0] if fits and _is_volume_of_t1(image) else None
        return Match(image=image, reason=reason, spare=spare)
    if not fits:
        telling = [reason for reason in reasons if NOT_MARKED not in reason] or reasons
        return Match(image=image, reason="; ".join([*telling, *image.warnings]))
    notes = list(image.warnings) + _doubts(image)
    if recipe.frame == "centerline" and _head_by_body_part(image):
        notes.append(f"its sidecar says body part {_body_part(image)}; make sure that it shows the cord")
    if len(fits) > 1:
        notes.append(f"could be {' or '.join(fits)}; taken as {fits[0]}")
    head = recipe.frame == "centerline" and not _names_spine(image) and _may_be_head(image)
    if head and image.suffix != "UNIT1":
        size = " x ".join(f"{length:.0f}" for length in _extents(_grid(image)))
        notes.append(f"has the extent of a head scan ({size} mm); make sure that it shows the cord")
    return Match(image=image, sequence=fits[0], warnings=tuple(notes), head=head)


def exclusion(image: ImageFile, recipe: Recipe) -> str | None:
    """Why an image is none of the recipe's sequences whatever its contrast; None if nothing says so."""
    if image.problem:
        return image.problem
    if not image.named:
        return (
            f"not a BIDS name for a raw image (suffix {image.suffix}); {_new_name(image, recipe)}, select "
            "it by a filter file, or give --skip-bids-validation"
        )
    if not any(has_suffix(image, rule) for rule in recipe.sequences):
        return _not_in_recipe(image)
    for check in (_contrast_agent, _magnetisation_transfer, _not_magnitude, _dixon_part, _computed):
        reason = check(image)
        if reason:
            return reason
    return _brain(image) if recipe.frame == "centerline" else None


def has_suffix(image: ImageFile, rule: SequenceRule) -> bool:
    """Whether a rule names an image's suffix, or has it among its words (``STIR``, ``PSIR``)."""
    return image.suffix in rule.suffixes or image.suffix.lower() in rule.keywords


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
    """Whether a word occurs in describing entities, sidecar fields or suffix (short words as whole words)."""
    texts = [*_texts(image), image.suffix]
    if len(word) >= 4:
        return any(word in text.lower() for text in texts)
    return any(word in split_words(text) for text in texts)


def split_words(text: str) -> list[str]:
    """Lower-case words of a name: ``axT2w`` -> ax, t2, w; ``t2_tse_sag`` -> t2, tse, sag."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[A-Za-z]*", text)]


def looks_like_head(grid: Grid) -> bool:
    """Whether a sagittal or isotropic volume has the extent of a head rather than of a spine."""
    right, anterior, superior = _extents(grid)
    low, high = HEAD_HEIGHT_MM
    wide = right >= HEAD_WIDTH_MM and anterior >= HEAD_DEPTH_MM
    return header_plane(grid) in ("iso", "sag") and wide and low <= superior < high


def looks_like_axial_head(grid: Grid) -> bool:
    """Whether an axial stack has the field and the height of a head scan; some of the cord have them too."""
    right, anterior, superior = _extents(grid)
    low, high = AXIAL_HEAD_HEIGHT_MM
    wide = right >= AXIAL_HEAD_MM[0] and anterior >= AXIAL_HEAD_MM[1]
    return header_plane(grid) == "ax" and wide and low <= superior <= high


def width_mm(grid: Grid) -> float:
    """Extent from side to side, in mm."""
    return _extents(grid)[0]


def dixon_kind(image: ImageFile) -> str | None:
    """``fat``, ``water``, ``in-phase`` or ``opposed-phase`` of a Dixon scan.

    None for other images, and where nothing says which of them it is. ``ImageType`` tells first, then the
    entities, then the sidecar's descriptions, where single letters count beside a word for Dixon only.
    """
    types = _image_types(image)
    if kind := _one_kind([part.removeprefix("DIXON_").replace("_", "").lower() for part in types]):
        return kind
    texts = [DIXON_RUN_ON.sub(" dixon ", NO_DIXON_LETTER.sub(" ", text)) for text in _texts(image)]
    words = [split_words(text) for text in texts]
    if not DIXON_WORDS & {word for part in words for word in part} and "DIXON" not in types:
        return None
    named = sum(key in dict(image.entities) for key in DESCRIPTION_ENTITIES)
    return _one_kind(_dixon_words(words[:named])) or _one_kind(_dixon_words(words))


def _grid(image: ImageFile) -> Grid:
    if image.grid is None:
        raise ValueError(f"{image.relative} has no usable header")
    return image.grid


def _extents(grid: Grid) -> tuple[float, float, float]:
    """Extent in mm along right, anterior and superior."""
    right, anterior, superior = (
        float(grid.shape[axis] * grid.spacing[axis]) for axis, _ in grid.canonical_axes()
    )
    return right, anterior, superior


def _fits(image: ImageFile, recipe: Recipe) -> tuple[list[str], list[str]]:
    """Names of the sequences that an image is by its contrast and plane, and why it is none of the others."""
    fits, reasons = [], []
    for rule in recipe.sequences:
        if has_suffix(image, rule):
            why = mismatch(image, rule)
            fits += [rule.name] if why is None else []
            reasons += [f"not {rule.name}: {why}"] if why is not None else []
    return fits, reasons


def _is_volume_of_t1(image: ImageFile) -> bool:
    """Whether it is T1-weighted and isotropic: protocols of the cord include such volumes, head and all."""
    return image.suffix in T1_SUFFIXES and header_plane(_grid(image)) == "iso"


def _may_be_head(image: ImageFile) -> bool:
    """Whether an image that is used all the same has the extent of a head scan."""
    return looks_like_axial_head(_grid(image)) or (image.suffix == "UNIT1" and looks_like_head(_grid(image)))


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


def _dixon_words(texts: list[list[str]]) -> list[str]:
    """Words of texts, without the fat of ``fat sat``."""
    return [
        word
        for words in texts
        for word, after in zip(words, [*words[1:], ""], strict=True)
        if not (word == "fat" and after in NOT_OF_FAT)
    ]


def _one_kind(words: list[str]) -> str | None:
    """The kind of Dixon image that words tell; None if none or several."""
    kinds = {DIXON_KINDS[word] for word in words if word in DIXON_KINDS}
    return kinds.pop() if len(kinds) == 1 else None


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
    return image.suffix in INVERSION_SUFFIXES or "IR" in re.split(r"[^A-Z]+", scanning)


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


def _dixon_part(image: ImageFile) -> str | None:
    kind = dixon_kind(image)
    if kind in ("fat", "opposed-phase"):
        return f"the {kind} image of a Dixon scan"
    return None


def _computed(image: ImageFile) -> str | None:
    types = _image_types(image)
    if types & COMPUTED_TYPES:
        return f"computed by the scanner (ImageType {', '.join(sorted(types & COMPUTED_TYPES))})"
    if types & {"LOCALIZER"} or _words(image) & LOCALIZER_WORDS:
        return "a localizer"
    return None


def _brain(image: ImageFile) -> str | None:
    """Whether name, body part or extent say that a scan shows the head, and nothing says spine.

    Where operators register necks as heads, the body part is outvoted by a sagittal field that reaches far
    down and is no wider than the spine's.
    """
    words = _words(image)
    if words & BRAIN_WORDS and not words & SPINE_WORDS:
        return f"a brain scan ({', '.join(sorted(words & BRAIN_WORDS))} in its name or sidecar)"
    if _names_spine(image):
        return None
    grid = _grid(image)
    if looks_like_head(grid) and image.suffix != "UNIT1" and not _head_by_body_part(image):
        return BY_EXTENT
    if not _head_by_body_part(image):
        return None
    long = header_plane(grid) in ("iso", "sag") and _extents(grid)[2] >= NECK_COIL_MM
    if long and (image.suffix == "UNIT1" or not looks_like_head(grid)):
        return None
    return (
        f"a brain scan by its body part ({_body_part(image)}); if it shows the cord, select it by a filter "
        "file"
    )


def _names_spine(image: ImageFile) -> bool:
    """Whether name, sidecar or body part have a word for the spine."""
    return bool((_words(image) | set(split_words(_body_part(image)))) & SPINE_WORDS)


def _body_part(image: ImageFile) -> str:
    """Body part that the sidecar states, empty if none."""
    sidecar = dict(image.sidecar)
    return str(sidecar.get("BodyPartExamined", sidecar.get("BodyPart", "")))


def _head_by_body_part(image: ImageFile) -> bool:
    """Whether the stated body part is the head, and nothing else names the spine."""
    part = set(split_words(_body_part(image)))
    return bool(part & BRAIN_WORDS) and not _names_spine(image)


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
    if dixon_kind(image) == "water":
        notes.append("is the water image of a Dixon scan: it counts as fat-suppressed")
    if _agent(image):
        notes.append(f"was acquired after a contrast agent ({_agent(image)})")
    if not image.quality:
        notes.append("is rated as of poor quality, and nothing better covers its range")
    return notes


def _new_name(image: ImageFile, recipe: Recipe) -> str:
    """What to rename an image to whose suffix a rule takes, though BIDS does not."""
    rules = [rule for rule in recipe.sequences if has_suffix(image, rule) and rule.suffixes]
    if not rules or any(image.suffix == rule.suffixes[0] for rule in rules):
        return "rename it"
    words = rules[0].keywords
    word = image.suffix if image.suffix.lower() in words else words[0].upper() if words else ""
    return f"rename it to {f'acq-{word}_' if word else ''}{rules[0].suffixes[0]}"


def _not_in_recipe(image: ImageFile) -> str:
    known = KNOWN_SUFFIXES.get(image.suffix)
    if known is None and image.suffix.endswith("map"):
        known = "a quantitative map"
    return f"{known or 'suffix ' + image.suffix}, no sequence of this recipe"
