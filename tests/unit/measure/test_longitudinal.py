"""Fates of lesions: one golden case for each, and what must hold for any lesions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.measure.longitudinal import (
    PlacedLesion,
    components,
    match_lesions,
    total_change,
    tracks,
)

BALL = 4 / 3 * np.pi
#: What each fate is called when time runs backwards.
MIRRORED = {
    "new": "resolved", "resolved": "new", "enlarged": "shrunken", "shrunken": "enlarged", "merged": "split",
    "split": "merged", "stable": "stable", "not examined": "not examined",
}  # fmt: skip


def lesion(number, place=(0.0, 0.0, 0.0), *, radius=2.5, volume=None, examined=1.0):
    """A ball of points 1 mm apart."""
    side = np.arange(-4.0, 5.0)
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    points = grid[np.linalg.norm(grid, axis=1) <= radius] + np.asarray(place)
    return PlacedLesion(
        number=number,
        volume_mm3=BALL * radius**3 if volume is None else volume,
        length_mm=2 * radius,
        points=points,
        examined=examined,
    )


def only(before, after):
    (match,) = match_lesions(before, after)
    return match


# Radius 2.5 mm: 65 mm³, surface 79 mm²; noise of a change 0.2 * 79 * sqrt(2) = 22 mm³, so 44 mm³ are beyond.


def test_the_same_lesion_is_stable():
    match = only([lesion(1)], [lesion(4, (0.5, 0, 0), volume=90.0)])  # 25 mm³ more
    assert (match.fate, match.before, match.after) == ("stable", (1,), (4,))
    assert match.shift_mm == pytest.approx(0.5)
    assert match.change.mm3 == pytest.approx(90 - BALL * 2.5**3)


def test_a_change_beyond_noise_is_enlarged_or_shrunken():
    small, large = lesion(1), lesion(1, radius=3.5)  # 65 and 180 mm³
    assert only([small], [large]).fate == "enlarged"
    assert only([large], [small]).fate == "shrunken"


def test_a_lesion_without_partner_is_new_or_resolved_where_the_other_session_looked():
    assert only([], [lesion(1)]).fate == "new"
    assert only([lesion(1)], []).fate == "resolved"
    far = match_lesions([lesion(1)], [lesion(1, (20.0, 0, 0))])
    assert sorted(match.fate for match in far) == ["new", "resolved"]


@pytest.mark.parametrize("examined", [0.49, 0.0, None])
def test_where_nobody_looked_nothing_is_said(examined):
    assert only([], [lesion(1, examined=examined)]).fate == "not examined"
    assert only([lesion(1, examined=examined)], []).fate == "not examined"


def test_half_a_place_is_enough_for_new_and_too_little_for_a_change():
    assert only([], [lesion(1, examined=0.5)]).fate == "new"
    cut = only([lesion(1, examined=0.5)], [lesion(1)])
    assert (cut.fate, cut.examined) == ("not examined", 0.5)
    assert only([lesion(1, examined=0.9)], [lesion(1)]).fate == "stable"


def test_two_that_become_one_are_merged_and_the_other_way_split():
    two = [lesion(1, (-3.0, 0, 0)), lesion(2, (3.0, 0, 0))]
    side = np.arange(-6.0, 7.0)
    bar = np.array([[x, y, z] for x in side for y in (-1, 0, 1) for z in (-1, 0, 1)])
    one = PlacedLesion(number=7, volume_mm3=140.0, length_mm=13.0, points=bar, examined=1.0)
    merged = only(two, [one])
    assert (merged.fate, merged.before, merged.after) == ("merged", (1, 2), (7,))
    assert merged.volume_before_mm3 == pytest.approx(2 * BALL * 2.5**3)
    split = only([one], two)
    assert (split.fate, split.before, split.after) == ("split", (7,), (1, 2))
    assert split.change.mm3 == pytest.approx(-merged.change.mm3)


def test_neighbours_keep_apart_although_they_touch():
    """Lesions of 1 mm radius 2 mm apart are within reach of each other; each has its own partner."""
    pair = [lesion(1, radius=1.0), lesion(2, (2.0, 0, 0), radius=1.0)]
    found = match_lesions(pair, pair)
    assert [(match.before, match.after) for match in found] == [((1,), (1,)), ((2,), (2,))]


def test_a_lesion_without_points_stays_alone():
    empty = replace(lesion(1), points=np.zeros((0, 3)))
    assert sorted(match.fate for match in match_lesions([empty], [lesion(1)])) == ["new", "resolved"]


def test_no_lesions_no_matches():
    assert match_lesions([], []) == ()


def test_links_hold_together_what_they_reach():
    links = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    assert components(links) == [([0, 1], [0, 1]), ([2], []), ([], [2])]


def test_totals_leave_out_what_only_one_session_examined():
    before, after = [lesion(1)], [lesion(1), lesion(2, (30.0, 0, 0), examined=0.0)]
    matches = match_lesions(before, after)
    assert total_change(matches, before, after).mm3 == pytest.approx(0)


def test_tracks_follow_lesions_over_sessions():
    first = match_lesions([lesion(1)], [lesion(1), lesion(2, (20.0, 0, 0))])
    second = match_lesions([lesion(1), lesion(2, (20.0, 0, 0))], [lesion(1, (20.0, 0, 0))])
    assert tracks([("a", "b", first), ("b", "c", second)]) == {
        ("a", 1): 1, ("b", 1): 1, ("b", 2): 2, ("c", 1): 2,
    }  # fmt: skip


# -- what must hold for any lesions


@st.composite
def sides(draw):
    """Lesions of two sessions in a short piece of cord, so that many touch."""
    out = []
    for _ in range(2):
        count = draw(st.integers(0, 5))
        out.append(
            [
                lesion(
                    number,
                    (draw(st.integers(0, 24)) / 2, draw(st.integers(-3, 3)), 0.0),
                    radius=draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])),
                    examined=draw(st.sampled_from([None, 0.0, 0.6, 1.0])),
                )
                for number in range(1, count + 1)
            ]
        )
    return out


@given(sides())
def test_time_runs_both_ways(lesions):
    before, after = lesions
    forth = {(m.before, m.after): m for m in match_lesions(before, after)}
    back = {(m.after, m.before): m for m in match_lesions(after, before)}
    assert forth.keys() == back.keys()
    for key, match in forth.items():
        mirror = back[key]
        assert mirror.fate == MIRRORED[match.fate]
        assert mirror.change.mm3 == pytest.approx(-match.change.mm3)
        assert mirror.change.sd_mm3 == pytest.approx(match.change.sd_mm3)
        assert mirror.examined == match.examined


@given(sides())
def test_each_lesion_has_one_fate(lesions):
    before, after = lesions
    matches = match_lesions(before, after)
    assert sorted(n for m in matches for n in m.before) == [item.number for item in before]
    assert sorted(n for m in matches for n in m.after) == [item.number for item in after]
    assert all(m.before or m.after for m in matches)


@given(sides(), st.randoms(use_true_random=False))
def test_the_order_of_lesions_does_not_matter(lesions, random):
    before, after = lesions
    shuffled = [random.sample(side, len(side)) for side in (before, after)]
    assert match_lesions(*shuffled) == match_lesions(before, after)
