from __future__ import annotations

import numpy as np
import phantoms
import pytest
from prepared_sessions import RECIPE, session

from bids_scseg.preprocess import prepare
from bids_scseg.preprocess.labels import labels_to_prepared, session_labels_to_prepared


def test_prepared_lesion_keeps_its_volume() -> None:
    # A sphere of 4 mm radius at the seam of the two slabs: 4/3 pi 64 = 268 mm3, cut by nothing.
    phantom = phantoms.Phantom(lesions=((0.0, 0.0, 0.0, 4.0), (0.0, 0.0, 24.0, 3.0)))
    images, cords = session()
    geometry, _ = prepare.fit(images, cords, RECIPE, register=False)
    labels = [phantoms.lesion_labels(phantom, slab.grid) for slab in geometry.slabs_of("Sag")]
    fused = session_labels_to_prepared(geometry, labels, key="Sag")
    assert set(np.unique(fused)) == {0, 1, 2}
    assert (fused == 1).sum() * 0.125 == pytest.approx(268, rel=0.1)
    assert (fused == 2).sum() * 0.125 == pytest.approx(113, rel=0.2)
    upper = geometry.slabs_of("Sag")[0]
    alone = labels_to_prepared(geometry, labels[0], upper)
    above = geometry.s_mm > upper.serves[0]
    assert (alone[..., above] == fused[..., above]).all()


def test_touching_labels_leave_no_gap() -> None:
    images, cords = session()
    geometry, _ = prepare.fit(images, cords, RECIPE, register=False)
    slab = geometry.slabs_of("Ax")[0]
    label = np.ones(slab.grid.shape, np.int16)
    label[:, :, 5:] = 9
    out = labels_to_prepared(geometry, label, slab)
    covered = geometry.apply([label], key="Ax")[1]
    assert ((out > 0) == covered).all()
    assert set(np.unique(out[covered])) == {1, 9}
