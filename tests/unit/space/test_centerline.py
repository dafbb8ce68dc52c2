from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.errors import GeometryError
from bids_scseg.space.centerline import Centerline


def line(**kwargs):
    values = {"s_mm": [0, 10, 20], "xy_mm": [[0, 0], [0, 0], [10, 0]], "measured": [True, True, False]}
    return Centerline(**{**values, **kwargs})


def test_between_nodes_it_is_linear_and_beyond_the_ends_constant():
    np.testing.assert_allclose(line().at([-5, 5, 15, 25]), [[0, 0], [0, 0], [5, 0], [10, 0]])


def test_arc_length_of_a_diagonal_by_hand():
    # 10 mm straight, then 10 mm up and 10 mm aside: sqrt(200).
    np.testing.assert_allclose(
        line().arc_length([-1, 0, 10, 20, 23]), [-1, 0, 10, 10 + 200**0.5, 13 + 200**0.5]
    )


def test_tangent_of_a_45_degree_line():
    diagonal = Centerline(s_mm=[0, 1, 2], xy_mm=[[0, 0], [1, 0], [2, 0]], measured=[True] * 3)
    np.testing.assert_allclose(diagonal.tangent([1.0]), [[0.5**0.5, 0, 0.5**0.5]])


def test_measured_follows_the_nearest_node_and_ends_beyond_the_nodes():
    assert line().is_measured([-2, 0, 4, 11, 16, 20, 30]).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_one_node_is_a_line():
    single = Centerline(s_mm=[3.0], xy_mm=[[1, 2]], measured=[True])
    np.testing.assert_allclose(single.at([0, 9]), [[1, 2], [1, 2]])
    np.testing.assert_allclose(single.tangent([0.0]), [[0, 0, 1]])
    assert single.is_measured([3.2, 5]).tolist() == [True, False]


@pytest.mark.parametrize(
    "broken", [{"s_mm": [0, 0, 1]}, {"s_mm": [0, np.nan, 1]}, {"measured": [True]}, {"xy_mm": [[0, 0]]}]
)
def test_broken_lines_are_refused(broken):
    with pytest.raises(GeometryError):
        line(**broken)


def test_json_round_trip():
    assert Centerline.from_json(line().to_json()) == line()
