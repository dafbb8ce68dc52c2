"""Which lesion of one session is which of another, and what became of it; symmetric in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from bids_scseg.measure.volume_noise import Change, volume_change
from bids_scseg.space.grid import FloatArray

Fate = Literal[
    "stable", "enlarged", "shrunken", "new", "resolved", "merged", "split", "not examined"
]  # fmt: skip
FATES: tuple[Fate, ...] = (
    "new", "enlarged", "merged", "stable", "split", "shrunken", "resolved", "not examined",
)  # fmt: skip

#: Places this close are the same place: half of it for the alignment, half for voxels of several mm (ours).
REACH_MM = 1.5
#: Two lesions may be the same from this share of the smaller within reach of the other (ours).
SHARE_FROM = 0.5
#: A lesion that is absent in the other session was absent there only if this share of its place was examined;
#: the same share of a cross-section makes a slice examined.
EXAMINED_FROM = 0.5
#: A lesion's change can be judged if this share of its place was examined in the other session (ours: a tenth
#: is within the noise of most lesions).
WHOLE_FROM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedLesion:
    """A lesion of one session, where both sessions of a pair can be compared.

    Attributes
    ----------
    number
        Its number in the session.
    volume_mm3, length_mm
        From the lesion table.
    points : (n, 3) float64
        Places of equal volume that fill it, mm, in coordinates that both sessions share; n may be 0.
    examined
        Share of them that the other session examined; None: not known.
    """

    number: int
    volume_mm3: float
    length_mm: float
    points: FloatArray
    examined: float | None = None

    @property
    def size(self) -> tuple[float, float]:
        """Volume and length."""
        return self.volume_mm3, self.length_mm


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What became of some lesions.

    Attributes
    ----------
    fate
        In one word.
    before, after
        Numbers of the lesions in the earlier and in the later session, ascending; one may be empty.
    volume_before_mm3, volume_after_mm3
        Their summed volumes; 0 for none.
    change
        The difference with its noise.
    examined
        Smallest share of a lesion's place that the other session examined; None: not known.
    shift_mm
        Distance between the centres of the two sides in shared coordinates; None where one side is empty.
    """

    fate: Fate
    before: tuple[int, ...]
    after: tuple[int, ...]
    volume_before_mm3: float
    volume_after_mm3: float
    change: Change
    examined: float | None
    shift_mm: float | None


def match_lesions(before: Sequence[PlacedLesion], after: Sequence[PlacedLesion]) -> tuple[Match, ...]:
    """Match the lesions of two sessions and say what became of each.

    Two lesions are linked where enough of the smaller lies within reach of the other, and one of them has no
    better partner. Lesions that links hold together are one match. A match of as many lesions before as after
    is stable, enlarged or shrunken by its summed volume and the noise of that; of more before than after,
    merged; of fewer, split. A lesion without partner is new or resolved if the other session examined its
    place. A match of which the other session saw less than nine tenths, and a lone lesion of which it saw
    less than half, are "not examined".

    Parameters
    ----------
    before, after
        Lesions of the earlier and of the later session, in any order.

    Returns
    -------
    Matches, each lesion in exactly one; sorted by their lesions' numbers, later session first. Exchanging the
    arguments gives the same matches with sides exchanged, changes negated and fates mirrored.
    """
    first = sorted(before, key=lambda lesion: lesion.number)
    last = sorted(after, key=lambda lesion: lesion.number)
    found = [
        _judge([first[n] for n in rows], [last[n] for n in columns])
        for rows, columns in components(_links(overlaps(first, last)))
    ]
    return tuple(sorted(found, key=lambda match: (not match.after, match.after, match.before)))


def overlaps(before: Sequence[PlacedLesion], after: Sequence[PlacedLesion]) -> tuple[FloatArray, FloatArray]:
    """Share of each lesion within reach of each of the other session.

    Returns
    -------
    Two (n before, n after) float64 in 0–1: share of the earlier lesion near the later one, and of the later
    lesion near the earlier one. 0 for a lesion without points.
    """
    shape = (len(before), len(after))
    trees = [[cKDTree(item.points) for item in side] for side in (before, after)]
    of_first, of_last = np.zeros(shape), np.zeros(shape)
    for row, column in np.ndindex(*shape):
        if before[row].points.size and after[column].points.size:
            of_first[row, column] = _share(before[row].points, trees[1][column])
            of_last[row, column] = _share(after[column].points, trees[0][row])
    return of_first, of_last


def _share(points: FloatArray, tree: cKDTree) -> float:
    distance, _ = tree.query(points, distance_upper_bound=REACH_MM)
    return float(np.isfinite(distance).mean())


def _links(shares: tuple[FloatArray, FloatArray]) -> npt.NDArray[np.bool_]:
    """(n, m) bool: partners, without those that have better ones on both sides."""
    strength = shares[0] + shares[1]
    strength = np.where(np.maximum(*shares) >= SHARE_FROM, strength, 0.0)
    if not strength.size:
        return np.zeros(strength.shape, bool)
    best_of_first = strength >= strength.max(axis=1, keepdims=True) - 1e-9
    best_of_last = strength >= strength.max(axis=0, keepdims=True) - 1e-9
    return np.asarray((strength > 0) & (best_of_first | best_of_last))


def components(links: npt.NDArray[np.bool_]) -> list[tuple[list[int], list[int]]]:
    """Rows and columns that links (n, m) hold together; rows and columns without links are by themselves."""
    rows, columns = links.shape
    group = np.arange(rows + columns)
    for row, column in np.argwhere(links):
        one, other = group[row], group[rows + column]
        group[group == max(one, other)] = min(one, other)
    return [
        (
            np.flatnonzero(group[:rows] == name).tolist(),
            np.flatnonzero(group[rows:] == name).tolist(),
        )
        for name in np.unique(group)
    ]


def _judge(before: Sequence[PlacedLesion], after: Sequence[PlacedLesion]) -> Match:
    change = volume_change([item.size for item in before], [item.size for item in after])
    seen = [item.examined for item in (*before, *after)]
    known = [share for share in seen if share is not None]
    examined = min(known) if len(known) == len(seen) else None
    return Match(
        fate=_fate(len(before), len(after), change, examined),
        before=tuple(item.number for item in before),
        after=tuple(item.number for item in after),
        volume_before_mm3=sum(item.volume_mm3 for item in before),
        volume_after_mm3=sum(item.volume_mm3 for item in after),
        change=change,
        examined=examined,
        shift_mm=_shift(before, after),
    )


def _fate(before: int, after: int, change: Change, examined: float | None) -> Fate:
    alone = before == 0 or after == 0
    if examined is None or examined < (EXAMINED_FROM if alone else WHOLE_FROM):
        return "not examined"
    if alone:
        return "new" if before == 0 else "resolved"
    if before != after:
        return "merged" if before > after else "split"
    return change.verdict


def _shift(before: Sequence[PlacedLesion], after: Sequence[PlacedLesion]) -> float | None:
    if not before or not after:
        return None
    centres = []
    for side in (before, after):
        weight = np.concatenate([np.full(len(i.points), i.volume_mm3 / max(len(i.points), 1)) for i in side])
        points = np.concatenate([item.points for item in side])
        centres.append((points * weight[:, None]).sum(axis=0) / weight.sum())
    return float(np.linalg.norm(centres[1] - centres[0]))


def tracks(pairs: Iterable[tuple[str, str, Sequence[Match]]]) -> dict[tuple[str, int], int]:
    """Lesions followed over all sessions of one participant.

    Parameters
    ----------
    pairs
        Earlier session, later session and their matches.

    Returns
    -------
    (session, lesion number) → number of the track, from 1, in the order of the pairs. Lesions that merged or
    split are of one track.
    """
    joined: dict[tuple[str, int], tuple[str, int]] = {}

    def root(item: tuple[str, int]) -> tuple[str, int]:
        joined.setdefault(item, item)
        while joined[item] != item:
            item = joined[item]
        return item

    for earlier, later, matches in pairs:
        for match in matches:
            items = [(earlier, n) for n in match.before] + [(later, n) for n in match.after]
            for item in items:
                joined[root(item)] = root(items[0])
    numbers: dict[tuple[str, int], int] = {}
    for item in joined:
        numbers.setdefault(root(item), len(numbers) + 1)
    return {item: numbers[root(item)] for item in joined}


def total_change(
    matches: Iterable[Match], before: Iterable[PlacedLesion], after: Iterable[PlacedLesion]
) -> Change:
    """Change of the total volume at places that both sessions examined: all matches but "not examined"."""
    counted = [match for match in matches if match.fate != "not examined"]
    first = {n for match in counted for n in match.before}
    last = {n for match in counted for n in match.after}
    return volume_change(
        [item.size for item in before if item.number in first],
        [item.size for item in after if item.number in last],
    )
