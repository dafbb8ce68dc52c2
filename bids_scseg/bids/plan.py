"""The plan of a session: which file serves which sequence, what is missing, and what is left out and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bids_scseg.bids.corrections import find_cord_corrections
from bids_scseg.bids.estimate import estimate_seconds, superior_range
from bids_scseg.bids.filters import Filters, selects
from bids_scseg.bids.masks import find_cord_masks, find_labels, is_by_sct
from bids_scseg.bids.match import Match, dixon_kind, match_image, width_mm
from bids_scseg.bids.memory import inference_gb, node_memory
from bids_scseg.errors import UsageError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan, Study

# Two images of one sequence that share this part of the shorter one's extent show the same cord: repeats.
REPEAT_OVERLAP = 0.6  # ours; neighbouring slabs overlap by 10-40 %
COVERAGE_RATIO = 1.1  # extents along the body closer than this ratio are the same (ours)
VOLUME_RATIO = 1.25  # voxel volumes closer than this ratio are the same (ours)
# Slabs of one sequence are about as wide as each other (ours): 15 slices of 3 mm against 20 of 3.5 mm make
# 1.56, 110 mm of a head against 60 mm of a cord 1.83.
WIDTH_RATIO = 1.6
UPPER_CORD_MM = 50.0  # shared with images of the cord by a volume of the head that shows C1-C3 (ours)
CORD_LENGTH_MM = 500.0  # two places of one cord lie nearer (adult cords: 400-450 mm)
SPACING_RATIO = 1.3  # slabs whose voxel sizes differ by more are worth a warning (ours)

LeftOut = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Images of one sequence, chosen."""

    files: tuple[ImageFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()


def make_plan(
    study: Study,
    recipe: Recipe,
    *,
    filters: Filters | None = None,
    sequences: Iterable[str] | None = None,
    derivatives: Sequence[str | Path] = (),
    results: Sequence[str | Path] = (),
    needs_anchor: str | None = None,
    late: bool = False,
) -> Plan:
    """Decide what will be done for one session.

    Every image is matched to the recipe's sequences (:func:`.match.match_image`). Of the images of one
    sequence, those that cover different parts of the body all serve, uppermost first. Of images that cover
    the same part (60 % of the shorter), one serves: not rated as bad, then the larger extent along the body,
    then with a cord mask of the user, then no water image, then the finer voxels, then the last run, then the
    first name. Images with the extent of a head scan give way to all others and are never slabs.

    Parameters
    ----------
    study
        The session with its images.
    recipe
        What the model wants.
    filters
        For the sequences named, the entities of their files, which then overrule the matching.
    sequences
        Names of the sequences that may be used; None or empty: all.
    derivatives
        Roots of derivatives datasets with the user's cord masks and disc or vertebra labels.
    results
        Output folders of this program: of their cord masks only those with ``desc-manual`` count, which win
        over all others.
    needs_anchor
        Sequence without which the model cannot work; None: any anchor will do.
    late
        Whether another program segments each image by itself, instead of the recipe's network.

    Returns
    -------
    Plan
        Without anchor and with a ``refusal`` where nothing can be done.

    Raises
    ------
    UsageError
        If `sequences` names one that the recipe lacks.
    """
    allowed = check_sequences(sequences, recipe)
    masks, mask_warnings = find_cord_masks(study, derivatives, corrections=False)
    corrected = find_cord_corrections(study, [*results, *derivatives])
    masks = tuple({**dict(masks), **dict(corrected.masks)}.items())
    matches, filter_warnings = _matches(study, recipe, filters or {})
    masked = frozenset(image for image, _ in masks)
    matches, spared = _with_spares(matches, allowed - set(filters or {}), masked)
    left_out = [(match.image.relative, match.reason) for match in matches if match.sequence is None]
    warnings = [*_broken(study), *filter_warnings, *mask_warnings, *corrected.notes, *corrected.conflicts]
    chosen: dict[str, tuple[ImageFile, ...]] = {}
    for name in recipe.sequence_names:
        group = [match for match in matches if match.sequence == name]
        if name not in allowed:
            left_out += [(match.image.relative, not_asked_for(name)) for match in group]
        elif group:
            heads = [match.image.relative for match in group if match.head]
            images = [match.image for match in group]
            choice = choose(images, masked, heads=heads, asked=name in (filters or {}))
            chosen[name] = choice.files
            left_out += choice.left_out
            warnings += _match_warnings(group, choice.files) + [f"{name}: {note}" for note in choice.warnings]
    # A volume of the head gives the grid only where nothing else is there or the model cannot do without.
    firm = tuple(name for name in chosen if name not in spared) if needs_anchor is None else ()
    anchor, refusal = _anchor(recipe, firm or tuple(chosen), needs_anchor)
    left_out += _misplaced(chosen, anchor, warnings)
    present = tuple(SequencePlan(name=name, files=files) for name, files in chosen.items())
    memory = node_memory(present, recipe, late=late) if anchor else ()
    cord_masks = _used_masks(masks, chosen)
    return Plan(
        subject=study.subject,
        session=study.session,
        dataset=study.dataset,
        recipe=recipe.name,
        sequences=present,
        missing=tuple(name for name in recipe.sequence_names if name not in chosen),
        anchor=anchor,
        left_out=tuple(sorted(left_out)),
        warnings=tuple(warnings),
        cord_masks=cord_masks,
        sct_masks=tuple(image for image, mask in cord_masks if is_by_sct(mask)),
        labels=find_labels(study, derivatives, anchor=chosen[anchor] if anchor else ()),
        memory_gb=max((need for _, need in memory), default=0.0),
        node_memory=memory,
        inference_gb=inference_gb(recipe) if anchor else 0.0,
        seconds=estimate_seconds(present, recipe, late=late) if anchor else 0.0,
        refusal=refusal,
        impute="late" if late else recipe.network.impute,
        conflict="; ".join(corrected.conflicts),
    )


def choose(
    images: Sequence[ImageFile],
    masked: Iterable[str] = (),
    *,
    heads: Iterable[str] = (),
    asked: bool = False,
) -> _Choice:
    """Of the images of one sequence, those that serve (uppermost first) and why the others do not.

    Parameters
    ----------
    images
        All with a grid.
    masked
        Relative paths of images for which the user has a cord mask.
    heads
        Relative paths of images with the extent of a head scan; those with a cord mask are taken for cords.
    asked
        Whether the user selected the images by a filter: then widths of slabs do not matter.
    """
    with_mask = frozenset(masked)
    single, doubles = _one_extension(sorted(images, key=lambda item: item.relative))
    candidates, left_out, warnings = _one_echo(single)
    left_out += doubles
    candidates, unfit = _without_heads(candidates, frozenset(heads) - with_mask, with_mask)
    kept, beaten = _serving(candidates, with_mask)
    for image, rival, reason in beaten:
        left_out.append((image.relative, f"covers the same part as {rival.name}, which {reason}"))
        warnings.append(f"{rival.name} is used and {image.name} is not: the former {reason}")
    if not asked:
        kept, other_widths = _of_one_width(kept, with_mask)
        unfit += other_widths
    left_out += [(image.relative, reason) for image, reason in unfit]
    warnings += [f"{image.name} is not used: {reason}" for image, reason in unfit]
    kept.sort(key=lambda item: -sum(_range(item)))
    return _Choice(files=tuple(kept), left_out=tuple(left_out), warnings=(*warnings, *_slab_warnings(kept)))


def repeats(image: ImageFile, other: ImageFile) -> bool:
    """Whether two images of one sequence cover the same part of the body.

    Images that differ in ``chunk-`` alone are slabs by their names, whatever their overlap.
    """
    chunks = image.entity("chunk"), other.entity("chunk")
    if None not in chunks and chunks[0] != chunks[1] and _without(image, "chunk") == _without(other, "chunk"):
        return False
    return _overlap(image, other) >= REPEAT_OVERLAP


def check_sequences(sequences: Iterable[str] | None, recipe: Recipe) -> frozenset[str]:
    """Names of the recipe's sequences that may be used; None or empty: all. Case does not matter.

    Raises
    ------
    UsageError
        If one is not the recipe's.
    """
    asked = list(sequences or ())
    if not asked:
        return frozenset(recipe.sequence_names)
    by_lower = {name.lower(): name for name in recipe.sequence_names}
    unknown = [name for name in asked if name.lower() not in by_lower]
    if unknown:
        raise UsageError(
            f"unknown sequence {unknown[0]!r}",
            expected=f"some of {', '.join(recipe.sequence_names)}",
            remedy="correct --sequences",
        )
    return frozenset(by_lower[name.lower()] for name in asked)


def _matches(study: Study, recipe: Recipe, filters: Filters) -> tuple[list[Match], list[str]]:
    """Every image with its sequence; filters come first, and their sequences take nothing else."""
    taken: dict[str, str] = {}
    warnings = []
    for name, wanted in filters.items():
        fits = [image for image in study.images if selects(wanted, image)]
        if not fits:
            warnings.append(f"the filter for {name} selects no image")
        for image in fits:
            if image.relative in taken:
                warnings.append(
                    f"{image.name} is selected for {taken[image.relative]} and for {name}; the first counts"
                )
            taken.setdefault(image.relative, name)
    matches = []
    for image in study.images:
        if image.relative in taken and image.problem is None:
            matches.append(Match(image=image, sequence=taken[image.relative], warnings=image.warnings))
            continue
        match = match_image(image, recipe)
        if match.sequence in filters:
            match = replace(match, sequence=None, reason=f"not selected by the filter for {match.sequence}")
        matches.append(match)
    return matches, warnings


def _with_spares(
    matches: list[Match], wanted: Iterable[str], masked: frozenset[str]
) -> tuple[list[Match], frozenset[str]]:
    """Matches with T1-weighted volumes of the head for sequences that have no other image; these sequences.

    Such a volume serves if the session's other images show the cord and share the upper cord with it, or if
    the user has a cord mask for it.
    """
    cords = [match.image for match in matches if match.sequence and not match.head]
    taken = {match.sequence for match in matches if match.sequence}
    spared: dict[str, str] = {}
    for name in sorted(set(wanted) - taken):
        fit = [
            match.image
            for match in matches
            if match.spare == name
            and (match.image.relative in masked or any(_shares_cord(match.image, cord) for cord in cords))
        ]
        if fit:
            spared[_best(fit, masked)[0].relative] = name
    served = []
    for match in matches:
        name = spared.get(match.image.relative, "")
        note = f"shows the head too; it serves because the session has no other {name}"
        notes = (*match.image.warnings, note)
        served.append(replace(match, sequence=name, reason="", warnings=notes) if name else match)
    return served, frozenset(spared.values())


def _shares_cord(image: ImageFile, cord: ImageFile) -> bool:
    """Whether a volume of the head shares the upper cord, or all of a shorter image, with an image of it."""
    (low, high), (other_low, other_high) = _range(image), _range(cord)
    return min(high, other_high) - max(low, other_low) >= min(UPPER_CORD_MM, other_high - other_low)


def not_asked_for(name: str) -> str:
    """Why an image is left out although its sequence is there."""
    return f"{name} was not asked for"


def _broken(study: Study) -> list[str]:
    """Images that cannot be used whatever they show; files whose names are not BIDS are only left out."""
    return [
        f"{image.name} is not used: {image.problem}"
        for image in study.images
        if image.problem and image.suffix
    ]


def _match_warnings(group: list[Match], files: tuple[ImageFile, ...]) -> list[str]:
    used = {file.relative for file in files}
    return [
        f"{match.image.name}: {note}"
        for match in group
        if match.image.relative in used
        for note in match.warnings
    ]


def _anchor(recipe: Recipe, available: tuple[str, ...], needs: str | None) -> tuple[str | None, str | None]:
    """(anchor, refusal): one of them is None."""
    if needs is not None and needs not in available:
        has = f"it has {', '.join(available)}" if available else "it has no usable sequence"
        return None, f"this model needs {needs}, which the session lacks ({has})"
    anchor = recipe.best_anchor(available) if needs is None else needs
    if anchor is None:
        wanted = ", ".join(recipe.sequence_names)
        return None, f"no image of this session is one of the sequences {wanted}"
    return anchor, None


def _misplaced(
    chosen: dict[str, tuple[ImageFile, ...]], anchor: str | None, warnings: list[str]
) -> list[LeftOut]:
    """Take out images that lie beside the anchor's field of view; note those above or below it."""
    if anchor is None:
        return []
    low, high = _box(chosen[anchor])
    left_out = []
    for name in [name for name in chosen if name != anchor]:
        good = []
        for file in chosen[name]:
            other_low, other_high = _box((file,))
            gap = np.maximum(other_low - high, low - other_high)
            beside, along = float(gap[:2].max()), float(gap[2])
            if beside > 0 or along > CORD_LENGTH_MM:
                where = f"{beside:.0f} mm beside" if beside > 0 else f"{along:.0f} mm above or below"
                reason = (
                    f"its field of view lies {where} that of {anchor}; expected one of the same cord. "
                    "Check its header"
                )
                left_out.append((file.relative, reason))
                warnings.append(f"{file.name} is not used: {reason}")
                continue
            if along > 0:
                warnings.append(
                    f"{file.name}: its field of view lies {along:.0f} mm above or below that of {anchor}; if "
                    "the subject did not move that far, check its header"
                )
            good.append(file)
        if good:
            chosen[name] = tuple(good)
        else:
            del chosen[name]
    return left_out


def _box(files: tuple[ImageFile, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world RAS mm of the corners."""
    corners = np.concatenate([file.grid.corners() for file in files if file.grid is not None])
    return corners.min(axis=0), corners.max(axis=0)


def _used_masks(
    masks: tuple[tuple[str, str], ...], chosen: dict[str, tuple[ImageFile, ...]]
) -> tuple[tuple[str, str], ...]:
    used = {file.relative for files in chosen.values() for file in files}
    return tuple((image, mask) for image, mask in masks if image in used)


def _without(image: ImageFile, *keys: str) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in image.entities if pair[0] not in keys)


def _range(image: ImageFile) -> tuple[float, float]:
    if image.grid is None:
        raise ValueError(f"{image.relative} has no usable header")
    return superior_range(image.grid)


def _overlap(image: ImageFile, other: ImageFile) -> float:
    """Shared part of the shorter image's extent along the body; negative where there is a gap."""
    (low, high), (other_low, other_high) = _range(image), _range(other)
    return (min(high, other_high) - max(low, other_low)) / min(high - low, other_high - other_low)


def _extent(image: ImageFile) -> float:
    low, high = _range(image)
    return high - low


def _voxel(image: ImageFile) -> float:
    return image.grid.voxel_volume if image.grid else math.inf


def _run(image: ImageFile) -> int:
    run = image.entity("run") or ""
    return int(run) if run.isdecimal() else 0


def _longest(images: list[ImageFile], _: frozenset[str]) -> list[ImageFile]:
    most = max(_extent(image) for image in images)
    return [image for image in images if most < COVERAGE_RATIO * _extent(image)]


def _finest(images: list[ImageFile], _: frozenset[str]) -> list[ImageFile]:
    least = min(_voxel(image) for image in images)
    return [image for image in images if _voxel(image) < VOLUME_RATIO * least]


def _latest(images: list[ImageFile], _: frozenset[str]) -> list[ImageFile]:
    last = max(_run(image) for image in images)
    return [image for image in images if _run(image) == last]


# What makes an image the better one, most important first: which of some images (by name) stay, given the
# relative paths of those with a mask (none: all stay), and what those have over the others. Each compares
# with the best that is left, so that images within a ratio of it are the same.
_Keep = Callable[[list[ImageFile], frozenset[str]], list[ImageFile]]
_PREFERENCES: tuple[tuple[_Keep, str], ...] = (
    (lambda images, _: [image for image in images if image.quality], "is not rated as poor"),
    (_longest, "covers more"),
    (
        lambda images, masked: [image for image in images if image.relative in masked],
        "has a cord mask of yours",
    ),
    (
        lambda images, _: [image for image in images if dixon_kind(image) != "water"],
        "is no water image of a Dixon scan (fat-suppressed)",
    ),
    (_finest, "has finer voxels"),
    (_latest, "is the later run"),
    (lambda images, _: images[:1], "comes first by name"),
)


def _best(images: Iterable[ImageFile], masked: frozenset[str]) -> tuple[ImageFile, dict[str, str]]:
    """The best image and, by relative path of each other one, in what the best is better."""
    pool = sorted(images, key=lambda item: item.relative)
    why: dict[str, tuple[ImageFile, str]] = {}
    for keep, phrase in _PREFERENCES:
        stay = keep(pool, masked) or pool
        names = {image.relative for image in stay}
        why |= {image.relative: (image, phrase) for image in pool if image.relative not in names}
        pool = stay
    return pool[0], {name: _in_numbers(image, pool[0], phrase) for name, (image, phrase) in why.items()}


def _in_numbers(image: ImageFile, better: ImageFile, phrase: str) -> str:
    """What the better one has over an image, with the numbers compared."""
    if phrase == "covers more":
        ours, theirs = _extent(better), _extent(image)
        digits = 0 if ours - theirs >= 1 else 1
        return f"{phrase} ({ours:.{digits}f} mm against {theirs:.{digits}f} mm)"
    if phrase == "has finer voxels":
        return f"{phrase} ({_voxel(better):.2f} mm³ against {_voxel(image):.2f} mm³)"
    return phrase


def _serving(
    images: list[ImageFile], masked: frozenset[str]
) -> tuple[list[ImageFile], list[tuple[ImageFile, ImageFile, str]]]:
    """Images that serve, and (image, better one, in what) of those that repeat them.

    Only images that repeat each other, directly or by others between them, are compared: what lies elsewhere
    along the body decides nothing here.
    """
    kept: list[ImageFile] = []
    beaten: list[tuple[ImageFile, ImageFile, str]] = []
    groups = _connected(images)
    while groups:
        group = groups.pop(0)
        best, why = _best(group, masked)
        kept.append(best)
        others = [image for image in group if image.relative != best.relative]
        beaten += [(image, best, why[image.relative]) for image in others if repeats(image, best)]
        groups += _connected([image for image in others if not repeats(image, best)])
    return kept, beaten


def _connected(images: list[ImageFile]) -> list[list[ImageFile]]:
    """Images grouped such that those of different groups do not repeat each other."""
    groups: list[list[ImageFile]] = []
    for image in images:
        near = [group for group in groups if any(repeats(image, other) for other in group)]
        apart = [group for group in groups if group not in near]
        groups = [*apart, [*(other for group in near for other in group), image]]
    return groups


def _without_heads(
    images: list[ImageFile], heads: frozenset[str], masked: frozenset[str]
) -> tuple[list[ImageFile], list[tuple[ImageFile, str]]]:
    """Images without those that have the extent of a head scan; the best of these if there are no others."""
    heads_here = [image for image in images if image.relative in heads]
    others = [image for image in images if image.relative not in heads]
    if not heads_here or len(images) == 1:
        return images, []
    if others:
        reason = (
            "it has the extent of a head scan and other images of its sequence have not; if it shows the "
            "cord, select it by a filter file"
        )
        return others, [(image, reason) for image in heads_here]
    best, why = _best(heads_here, masked)
    return [best], [
        (
            image,
            f"it has the extent of a head scan, as has {best.name}, which {why[image.relative]}; to use such "
            "images as slabs, select them by a filter file",
        )
        for image in heads_here
        if image.relative != best.relative
    ]


def _of_one_width(
    kept: list[ImageFile], masked: frozenset[str]
) -> tuple[list[ImageFile], list[tuple[ImageFile, str]]]:
    """Slabs that are about as wide as each other, and the others with the reason.

    Those with a cord mask count first; then the narrowest, which is the cord's, unless it is a crop of less
    than half of the longest one's extent along the body.
    """
    if len(kept) < 2:
        return kept, []
    sure = [image for image in kept if image.relative in masked] or kept
    longest = max(_extent(image) for image in sure)
    whole = [image for image in sure if 2 * _extent(image) >= longest]
    model = min(whole, key=lambda image: (_width(image), image.relative))
    good, bad = [], []
    for image in kept:
        wide, narrow = max(_width(image), _width(model)), min(_width(image), _width(model))
        if wide <= WIDTH_RATIO * narrow:
            good.append(image)
            continue
        reason = (
            f"it is {_width(image):.0f} mm wide and {model.name} {_width(model):.0f} mm; expected slabs of "
            "about one width. To join them, select them by a filter file"
        )
        bad.append((image, reason))
    return good, bad


def _width(image: ImageFile) -> float:
    return width_mm(image.grid) if image.grid else 0.0


def _one_extension(images: Sequence[ImageFile]) -> tuple[list[ImageFile], list[LeftOut]]:
    """Of ``x.nii`` and ``x.nii.gz`` the latter (their outputs would bear the same name)."""
    packed = {image.stem for image in images if image.name.endswith(".gz")}
    doubles = [image for image in images if not image.name.endswith(".gz") and image.stem in packed]
    left_out = [(image.relative, f"the same name as {image.stem}.nii.gz") for image in doubles]
    return [image for image in images if image not in doubles], left_out


def _one_echo(images: list[ImageFile]) -> tuple[list[ImageFile], list[LeftOut], list[str]]:
    """Of a multi-echo scan the combined image, else the middle echo (T2* contrast, little signal loss)."""
    groups: dict[tuple[tuple[tuple[str, str], ...], str], list[ImageFile]] = {}
    for image in images:
        key = (_without(image, "echo", "rec"), image.suffix)
        groups.setdefault(key, []).append(image)
    combined_keys = {
        key[0] for key, group in groups.items() if any(item.entity("echo") is None for item in group)
    }
    kept: list[ImageFile] = []
    left_out: list[LeftOut] = []
    warnings: list[str] = []
    for key, group in groups.items():
        echoes = sorted((item for item in group if item.entity("echo")), key=_echo)
        kept += [item for item in group if item.entity("echo") is None]
        if not echoes:
            continue
        if key[0] in combined_keys:
            left_out += [
                (item.relative, "a single echo of a scan whose combined image is there") for item in echoes
            ]
            continue
        middle = echoes[len(echoes) // 2] if len(echoes) > 2 else echoes[-1]
        kept.append(middle)
        left_out += [(item.relative, f"echo; {middle.name} is used") for item in echoes if item is not middle]
        if len(echoes) > 1:
            warnings.append(f"there is no combined image of {len(echoes)} echoes; {middle.name} is used")
    return kept, left_out, warnings


def _echo(image: ImageFile) -> int:
    echo = image.entity("echo") or ""
    return int(echo) if echo.isdecimal() else 0


def _slab_warnings(files: list[ImageFile]) -> list[str]:
    """What is odd about slabs, uppermost first."""
    notes = []
    for upper, lower in pairwise(files):
        if upper.grid is None or lower.grid is None:
            continue
        gap = _range(upper)[0] - _range(lower)[1]
        if gap > max(upper.grid.spacing.max(), lower.grid.spacing.max()):
            notes.append(f"slabs {upper.name} and {lower.name} do not overlap ({gap:.0f} mm between them)")
        if _overlap(upper, lower) >= REPEAT_OVERLAP:
            notes.append(f"slabs {upper.name} and {lower.name} overlap by more than {REPEAT_OVERLAP:.0%}")
        ratio = np.sort(upper.grid.spacing) / np.sort(lower.grid.spacing)
        if max(ratio.max(), 1 / ratio.min()) > SPACING_RATIO:
            notes.append(f"slabs {upper.name} and {lower.name} have different voxel sizes")
    return notes
