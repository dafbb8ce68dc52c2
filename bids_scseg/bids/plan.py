"""The plan of a session: which file serves which sequence, what is missing, and what is left out and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bids_scseg.bids.corrections import find_cord_corrections
from bids_scseg.bids.estimate import estimate_seconds, superior_range
from bids_scseg.bids.filters import Filters, selects
from bids_scseg.bids.masks import find_cord_masks, find_labels, is_by_sct
from bids_scseg.bids.match import Match, match_image
from bids_scseg.bids.memory import inference_gb, node_memory
from bids_scseg.errors import UsageError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan, Study

# Two images of one sequence that share this part of the shorter one's extent show the same cord: repeats.
REPEAT_OVERLAP = 0.6  # ours; neighbouring slabs overlap by 10-40 %
COVERAGE_STEP = 1.1  # extents along the body closer than this ratio are the same (ours)
VOLUME_STEP = 1.25  # voxel volumes closer than this ratio are the same (ours)
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
    then with a cord mask of the user, then the finer voxels, then the last run, then the first name.

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
    left_out = [(match.image.relative, match.reason) for match in matches if match.sequence is None]
    warnings = [*_broken(study), *filter_warnings, *mask_warnings, *corrected.notes, *corrected.conflicts]
    chosen: dict[str, tuple[ImageFile, ...]] = {}
    for name in recipe.sequence_names:
        group = [match for match in matches if match.sequence == name]
        if name not in allowed:
            left_out += [(match.image.relative, not_asked_for(name)) for match in group]
        elif group:
            choice = choose([match.image for match in group], {image for image, _ in masks})
            chosen[name] = choice.files
            left_out += choice.left_out
            warnings += _match_warnings(group, choice.files) + [f"{name}: {note}" for note in choice.warnings]
    anchor, refusal = _anchor(recipe, tuple(chosen), needs_anchor)
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


def choose(images: Sequence[ImageFile], masked: Iterable[str] = ()) -> _Choice:
    """Of the images of one sequence, those that serve (uppermost first) and why the others do not.

    Parameters
    ----------
    images
        All with a grid.
    masked
        Relative paths of images for which the user has a cord mask.
    """
    with_mask = frozenset(masked)
    single, doubles = _one_extension(images)
    candidates, left_out, warnings = _one_echo(single)
    left_out += doubles
    kept: list[ImageFile] = []
    for image in sorted(candidates, key=lambda item: _preference(item, with_mask)):
        rival = next((other for other in kept if repeats(image, other)), None)
        if rival is None:
            kept.append(image)
            continue
        reason = _why(image, rival, with_mask)
        left_out.append((image.relative, f"covers the same part as {rival.name}, which {reason}"))
        warnings.append(f"{rival.name} is used and {image.name} is not: the former {reason}")
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


def _preference(image: ImageFile, masked: frozenset[str]) -> tuple[bool, int, bool, int, int, str]:
    """Sort key: the best image first. Extents and voxel volumes count in steps, so that rounding does not."""
    return (
        not image.quality,
        -round(math.log(_extent(image), COVERAGE_STEP)),
        image.relative not in masked,
        round(math.log(_voxel(image), VOLUME_STEP)),
        -_run(image),
        image.relative,
    )


def _why(image: ImageFile, better: ImageFile, masked: frozenset[str]) -> str:
    """In what the better one is better, in words."""
    phrases = (
        "is not rated as poor",
        f"covers more ({_extent(better):.0f} mm against {_extent(image):.0f} mm)",
        "has a cord mask of yours",
        f"has finer voxels ({_voxel(better):.2f} mm³ against {_voxel(image):.2f} mm³)",
        "is the later run",
        "comes first by name",
    )
    keys = zip(_preference(image, masked), _preference(better, masked), phrases, strict=True)
    return next(phrase for mine, theirs, phrase in keys if mine != theirs)


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
