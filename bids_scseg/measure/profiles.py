"""Named rules for lesion-wise metrics: published tools differ, so every result names its rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Match = Callable[[Table], tuple[Bools, Bools]]
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One set of rules.

    Attributes
    ----------
    name
        Printed in every result.
    connectivity
        Neighbourhood by which voxels form a lesion: 6, 18 or 26.
    drop_up_to_mm3
        Components of at most this volume are dropped on both sides.
    both_empty, truth_empty
        Score of two empty masks, and of a prediction where there is no lesion.
    match
        Overlap table → (true lesions found, predicted lesions that are right). The table's rows are the true
        lesions, its columns the predicted ones, index 0 is background.
    description
        The rules in words.
    """

    name: str
    connectivity: Literal[6, 18, 26]
    drop_up_to_mm3: float = 0.0
    both_empty: float
    truth_empty: float
    match: Match
    description: str


def detected_share(table: Table) -> npt.NDArray[np.float64]:
    """(lesions of the rows,) share of each lesion's voxels that any lesion of the columns covers."""
    return np.asarray(table[1:, 1:].sum(axis=1) / table[1:].sum(axis=1))


def outside_share(table: Table) -> npt.NDArray[np.float64]:
    """(lesions of the columns,) share of each lesion's voxels outside all lesions of the rows."""
    return np.asarray(table[0, 1:] / table[:, 1:].sum(axis=0))


def iou(table: Table) -> npt.NDArray[np.float64]:
    """(true, predicted) intersection over union of each pair of lesions."""
    both = table[1:, 1:]
    union = table[1:].sum(axis=1)[:, None] + table[:, 1:].sum(axis=0)[None, :] - both
    return np.asarray(both / union)


def match_share(table: Table, *, min_detected: float, max_outside: float) -> tuple[Bools, Bools]:
    """Found: at least ``min_detected`` of it is covered. False: over ``max_outside`` of it lies outside."""
    return detected_share(table) >= min_detected, outside_share(table) <= max_outside


def match_any_overlap(table: Table, *, min_detected: float) -> tuple[Bools, Bools]:
    """Found: at least ``min_detected`` of it is covered. False: no voxel in common with any true lesion."""
    return detected_share(table) >= min_detected, table[1:, 1:].sum(axis=0) > 0


def match_weighted(table: Table, *, above: float, weight: float, max_outside: float) -> tuple[Bools, Bools]:
    """The same test for both sides, roles exchanged.

    A lesion passes if more than ``above`` of it is covered and, of the other side's lesions taken by
    decreasing overlap (at a tie the one that lies less outside first) until ``weight`` of the overlap is
    accounted for, none lies more than ``max_outside`` outside.
    """
    options = {"above": above, "weight": weight, "max_outside": max_outside}
    return _pass_weighted(table, **options), _pass_weighted(table.T, **options)


def _pass_weighted(table: Table, *, above: float, weight: float, max_outside: float) -> Bools:
    covered, outside = detected_share(table) > above, outside_share(table)
    passed = np.zeros(table.shape[0] - 1, bool)
    for lesion in np.flatnonzero(covered):
        overlap = table[lesion + 1, 1:]
        order = np.lexsort((outside, -overlap))
        before = np.cumsum(overlap[order]) - overlap[order]
        taken = order[before < weight * overlap.sum()]
        passed[lesion] = bool((outside[taken] <= max_outside).all())
    return passed


def match_iou(table: Table, *, min_iou: float) -> tuple[Bools, Bools]:
    """Two lesions match from ``min_iou`` on; one may match several."""
    hit = iou(table) >= min_iou
    return np.asarray(hit.any(axis=1)), np.asarray(hit.any(axis=0))


def match_one_to_one(table: Table, *, min_iou: float) -> tuple[Bools, Bools]:
    """Pairs from ``min_iou`` on, best first, each lesion in one pair at most."""
    value = iou(table)
    found, right = np.zeros(value.shape[0], bool), np.zeros(value.shape[1], bool)
    for flat in np.argsort(-value, axis=None, kind="stable"):
        true, predicted = np.unravel_index(flat, value.shape)
        if value[true, predicted] < min_iou:
            break
        if not found[true] and not right[predicted]:
            found[true] = right[predicted] = True
    return found, right


_ALL = (
    Profile(
        name="walsh2024",
        connectivity=26,
        both_empty=NAN,
        truth_empty=NAN,
        match=partial(match_share, min_detected=0.1, max_outside=0.7),
        description="Walsh et al. 2024: found if at least 10 % of its voxels are detected, false if over 70 "
        "% of its "
        "voxels lie outside true lesions; 26-connectivity is this project's choice.",
    ),
    Profile(
        name="anima",
        connectivity=6,
        drop_up_to_mm3=3.0,
        both_empty=0.0,
        truth_empty=0.0,
        match=partial(match_weighted, above=0.1, weight=0.65, max_outside=0.7),
        description="Defaults of Anima's segmentation analyser: components up to 3 mm3 dropped; found if "
        "over 10 % is "
        "detected and none of the predictions that make up 65 % of the overlap lies over 70 % outside; "
        "precision by "
        "the same test with roles exchanged.",
    ),
    Profile(
        name="neuropoly",
        connectivity=6,
        both_empty=1.0,
        truth_empty=0.0,
        match=partial(match_any_overlap, min_detected=0.1),
        description="Found if at least 10 % of its voxels are detected, false only without any overlap.",
    ),
    Profile(
        name="msms",
        connectivity=26,
        both_empty=1.0,
        truth_empty=0.0,
        match=partial(match_iou, min_iou=0.2),
        description="MS-Multi-Spine challenge: lesions match from an intersection over union of 0.2 on.",
    ),
    Profile(
        name="panoptica",
        connectivity=26,
        both_empty=NAN,
        truth_empty=0.0,
        match=partial(match_one_to_one, min_iou=0.5),
        description="One-to-one matches from an intersection over union of 0.5 on.",
    ),
)

#: By name.
PROFILES = MappingProxyType({profile.name: profile for profile in _ALL})
