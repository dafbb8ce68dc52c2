"""Of the images that match one sequence, those that serve: repeats, slabs, echoes, scans of the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bids_scseg.bids.estimate import superior_range
from bids_scseg.bids.match import dixon_kind, width_mm
from bids_scseg.recipe.study import ImageFile

# Two images of one sequence that share this part of the shorter one's extent show the same cord: repeats.
REPEAT_OVERLAP = 0.6  # ours; neighbouring slabs overlap by 10-40 %
COVERAGE_RATIO = 1.1  # extents along the body closer than this ratio are the same (ours)
VOLUME_RATIO = 1.25  # voxel volumes closer than this ratio are the same (ours)
# Slabs of one sequence are about as wide as each other (ours): 15 slices of 3 mm against 20 of 3.5 mm make
# 1.56, 110 mm of a head against 60 mm of a cord 1.83.
WIDTH_RATIO = 1.6
SPACING_RATIO = 1.3  # slabs whose voxel sizes differ by more are worth a warning (ours)

LeftOut = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Images of one sequence, chosen."""

    files: tuple[ImageFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()


def choose(
    images: Sequence[ImageFile],
    masked: Iterable[str] = (),
    *,
    heads: Iterable[str] = (),
    asked: bool = False,
) -> Choice:
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
    kept.sort(key=lambda item: -sum(si_range(item)))
    return Choice(files=tuple(kept), left_out=tuple(left_out), warnings=(*warnings, *_slab_warnings(kept)))


def repeats(image: ImageFile, other: ImageFile) -> bool:
    """Whether two images of one sequence cover the same part of the body.

    Images that differ in ``chunk-`` alone are slabs by their names, whatever their overlap.
    """
    chunks = image.entity("chunk"), other.entity("chunk")
    if None not in chunks and chunks[0] != chunks[1] and _without(image, "chunk") == _without(other, "chunk"):
        return False
    return _overlap(image, other) >= REPEAT_OVERLAP


def _without(image: ImageFile, *keys: str) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in image.entities if pair[0] not in keys)


def si_range(image: ImageFile) -> tuple[float, float]:
    """Lowest and highest place along S-I, in mm of the scanner (ValueError without a header)."""
    if image.grid is None:
        raise ValueError(f"{image.relative} has no usable header")
    return superior_range(image.grid)


def _overlap(image: ImageFile, other: ImageFile) -> float:
    """Shared part of the shorter image's extent along the body; negative where there is a gap."""
    (low, high), (other_low, other_high) = si_range(image), si_range(other)
    return (min(high, other_high) - max(low, other_low)) / min(high - low, other_high - other_low)


def _extent(image: ImageFile) -> float:
    low, high = si_range(image)
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


def best_of(images: Iterable[ImageFile], masked: frozenset[str]) -> tuple[ImageFile, dict[str, str]]:
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
        best, why = best_of(group, masked)
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
    best, why = best_of(heads_here, masked)
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
        gap = si_range(upper)[0] - si_range(lower)[1]
        if gap > max(upper.grid.spacing.max(), lower.grid.spacing.max()):
            notes.append(f"slabs {upper.name} and {lower.name} do not overlap ({gap:.0f} mm between them)")
        if _overlap(upper, lower) >= REPEAT_OVERLAP:
            notes.append(f"slabs {upper.name} and {lower.name} overlap by more than {REPEAT_OVERLAP:.0%}")
        ratio = np.sort(upper.grid.spacing) / np.sort(lower.grid.spacing)
        if max(ratio.max(), 1 / ratio.min()) > SPACING_RATIO:
            notes.append(f"slabs {upper.name} and {lower.name} have different voxel sizes")
    return notes
