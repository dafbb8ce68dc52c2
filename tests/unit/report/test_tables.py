"""Tables: formats, missing values, sort keys."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_scseg.report import tables


@pytest.mark.parametrize("value", [None, float("nan"), np.nan, pd.NA, np.float32("nan")])
def test_missing_values_are_a_dash(value):
    assert tables.number(1)(value) == tables.ABSENT
    assert tables.text(value) == tables.ABSENT
    assert tables.as_number(value) is None


def test_zero_is_a_value():
    assert tables.number(0)(0) == "0" and tables.number(2, unit="%", factor=100)(0.0) == "0.00\u00a0%"


def test_numbers():
    assert tables.number(1)(-3.25) == "−3.2"
    assert tables.number(0, unit="mm³")(12345.6) == "12\u202f346\u00a0mm³"
    assert tables.number(2, sign=True)(1.5) == "+1.50"
    assert tables.percent(np.float64(0.0417)) == "4.2\u00a0%"
    assert tables.number()(np.int64(3)) == "3"
    assert tables.as_number(float("inf")) is None and tables.as_number("7") is None


def test_columns_without_values_are_dropped_and_numbers_sort_as_numbers():
    table = tables.rows_table([{"index": 2, "volume_mm3": 10.0, "level": None}], tables.LESION_FIELDS)
    assert [head.text for head in table.headers] == ["No.", "Volume, mm³"]
    assert [(cell.text, float(cell.sort)) for cell in table.rows[0]] == [("2", 2.0), ("10", 10.0)]


def test_levels_come_from_their_keys():
    measures = {
        "C3_cord_volume_mm3": 700.0,
        "C3_lesion_count": 1,
        "C3_lesion_volume_mm3": 35.0,
        "C3_lesion_load": 0.05,
        "C4_cord_volume_mm3": None,
        "cord_volume_mm3": 9.0,
    }
    table = tables.levels_table(measures)
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [["C3", "1", "35", "700", "5.00\u00a0%"]]
    assert tables.levels_table({"lesion_count": 0}) is None


def test_contrast_tells_not_examined_from_not_known():
    rows = [
        {
            "index": 1,
            "A_contrast": 0.5,
            "A_cnr": 2.0,
            "A_covered_fraction": 1.0,
            "B_contrast": None,
            "B_covered_fraction": 0.0,
            "C_contrast": None,
            "C_covered_fraction": 0.4,
        }
    ]
    table = tables.contrast_table(rows, ["A", "B", "C", "D"])
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["1", "+0.50 (CNR 2.0)", "not examined", tables.ABSENT]
    assert tables.contrast_table([], ["A"]) is None


def test_measures_are_named_in_words():
    table = tables.measures_table(
        {"lesion_count": 0, "lesion_load": 0.0, "unknown": 3, "cord_length_mm": None}
    )
    assert [row[0].text for row in table.rows] == [
        "Lesions",
        "Lesion load (lesion volume / examined cord volume)",
    ]
