"""Hypothesis strategies shared by the tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation


@st.composite
def rigids(draw, max_degrees: float = 15.0, max_mm: float = 10.0):
    """4x4 rigid transforms."""
    angles = [draw(st.floats(-max_degrees, max_degrees)) for _ in range(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = [draw(st.floats(-max_mm, max_mm)) for _ in range(3)]
    return matrix


@st.composite
def affines(draw, low: float = 0.4, high: float = 5.0):
    """4x4 affines as scanners write them: any axis order and flips, oblique, anisotropic voxels."""
    order = draw(st.permutations([0, 1, 2]))
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    spacing = [draw(st.floats(low, high)) for _ in range(3)]
    base = np.zeros((4, 4))
    for axis in range(3):
        base[order[axis], axis] = signs[axis] * spacing[axis]
    base[3, 3] = 1
    return draw(rigids(max_degrees=20.0, max_mm=100.0)) @ base
