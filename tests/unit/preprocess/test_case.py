from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prepared_sessions import RECIPE, session

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.preprocess import prepare
from bids_scseg.preprocess.case import PreparedCase


def test_case_survives_the_disk(tmp_path: Path) -> None:
    images, cords = session()
    case, _ = prepare.prepare_session(images, cords, RECIPE, register=False)
    case.save(tmp_path / "case", dtype=np.float16)
    back = PreparedCase.load(tmp_path / "case")
    assert np.allclose(back.image, case.image, atol=5e-3)
    assert (back.coverage == case.coverage).all()
    assert back.geometry == case.geometry
    assert back.sequences == case.sequences
    assert back.available == case.available
    assert np.allclose(back.cord, case.cord, atol=1e-3)
    assert set(np.unique(np.load(tmp_path / "case" / "cord.npy"))) == {0, 1}
    with pytest.raises(ValueError, match="read-only"):
        back.image[0, 0, 0, 0] = 1


def test_broken_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        PreparedCase.load(tmp_path)
    (tmp_path / "case.json").write_text("{}")
    with pytest.raises(DataError):
        PreparedCase.load(tmp_path)
    (tmp_path / "case.json").write_text("{")
    with pytest.raises(DataError):
        PreparedCase.load(tmp_path)
