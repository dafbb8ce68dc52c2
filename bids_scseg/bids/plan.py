"""The plan of a session: which file serves which sequence, what is missing, and what is left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_scseg.bids.choice import Choice, LeftOut, best_of, choose, si_range
from bids_scseg.bids.corrections import find_cord_corrections
from bids_scseg.bids.estimate import estimate_seconds
from bids_scseg.bids.filters import Filters, selects
from bids_scseg.bids.masks import find_cord_masks, find_labels, is_by_sct
from bids_scseg.bids.match import Match, match_image
from bids_scseg.bids.memory import inference_gb, node_memory
from bids_scseg.errors import UsageError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan, Study

UPPER_CORD_MM = 50.0  # shared with images of the cord by a volume of the head that shows C1-C3 (ours)
CORD_LENGTH_MM = 500.0  # two places of one cord lie nearer (adult cords: 400-450 mm)


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
    for match in matches:
        if match.sequence is not None and match.sequence not in allowed:
            left_out.append((match.image.relative, not_asked_for(match.sequence)))
    names = [name for name in recipe.sequence_names if name in allowed]
    choices = _choices(matches, names, masked, filters or {})
    chosen = {name: choice.files for name, choice in choices.items()}
    left_out += [item for choice in choices.values() for item in choice.left_out]
    warnings += [note for choice in choices.values() for note in choice.warnings]
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
            spared[best_of(fit, masked)[0].relative] = name
    served = []
    for match in matches:
        name = spared.get(match.image.relative, "")
        note = f"shows the head too; it serves because the session has no other {name}"
        notes = (*match.image.warnings, note)
        served.append(replace(match, sequence=name, reason="", warnings=notes) if name else match)
    return served, frozenset(spared.values())


def _shares_cord(image: ImageFile, cord: ImageFile) -> bool:
    """Whether a volume of the head shares the upper cord, or all of a shorter image, with an image of it."""
    (low, high), (other_low, other_high) = si_range(image), si_range(cord)
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


def _choices(
    matches: list[Match], names: Sequence[str], masked: frozenset[str], filters: Filters
) -> dict[str, Choice]:
    """Of each sequence that has images, those that serve, with what is to be said of them."""
    found = {}
    for name in names:
        group = [match for match in matches if match.sequence == name]
        if group:
            heads = [match.image.relative for match in group if match.head]
            choice = choose([match.image for match in group], masked, heads=heads, asked=name in filters)
            notes = [*_match_warnings(group, choice.files), *(f"{name}: {note}" for note in choice.warnings)]
            found[name] = replace(choice, warnings=tuple(notes))
    return found


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
