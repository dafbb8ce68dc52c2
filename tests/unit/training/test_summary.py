from __future__ import annotations

import numpy as np

from bids_scseg.training.cases import TrainingCase
from bids_scseg.training.sample import IGNORE
from bids_scseg.training.summary import describe, summarize


def case(
    subject: str, session: str, *, lesions: tuple[int, ...] = (), available: bool = True
) -> TrainingCase:
    label = np.zeros((8, 8, 10 + len(lesions)), np.uint8)
    label[0, 0, 0] = IGNORE
    for number, voxels in enumerate(lesions, start=1):
        label.reshape(-1)[10 * number : 10 * number + voxels] = number
    shape = (2, *label.shape)
    return TrainingCase(
        name=f"{subject}-{session}",
        subject=subject,
        session=session,
        sequences=("T2Sag", "STIR"),
        available=np.array([True, available]),
        image=np.zeros(shape, np.float32),
        coverage=np.ones(shape, bool),
        label=label,
    )


def test_counts_by_hand() -> None:
    cases = [case("a", "1", lesions=(2, 8)), case("a", "2", available=False), case("b", "", lesions=(4,))]
    summary = summarize(cases, spacing_mm=0.5)
    assert summary == {
        "cases": 3,
        "subjects": 2,
        "sessions": 3,
        "available": {"T2Sag": 3, "STIR": 2},
        "without lesions": 1,
        "lesions": 3,
        "lesion voxels": 14,
        # an eighth of a cubic millimetre each: 0.25, 1.0 and 0.5
        "lesion volume mm3": {"total": 1.8, "smallest": 0.25, "median": 0.5, "largest": 1.0},
        "lengths": [10, 11, 12],
    }
    text = describe(summary, title="training")
    assert "3 cases, 3 sessions of 2 subjects, 10 to 12 slices" in text
    assert "T2Sag 3, STIR 2" in text
    assert "3 lesions, 1.8 mm3 in all (each 0.25 to 1.0 mm3, median 0.5); 1 cases without any" in text


def test_nothing_and_no_lesion() -> None:
    assert describe(summarize([]), title="held out") == "held out: no case"
    assert "0 lesions, 0.0 mm3 in all; 1 cases without any" in describe(summarize([case("a", "")]), title="x")
