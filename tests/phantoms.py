"""Small phantoms with a known truth: a curved cord in any lattice, vertebrae to register, lesions to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bids_scseg.recipe.model import GridSpec, Recipe, SequenceRule
from bids_scseg.space.grid import FloatArray, Grid, transform_points

CORD_RADIUS_MM = 5.0
SAC_RADIUS_MM = 8.0


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A cord that runs along world S with a known centre at every height.

    ``center(z)`` is exact; ``shift`` displaces the cord alone (as a patient's swallow does), ``lesions`` are
    (R offset from the cord's centre, A offset, height, radius) in mm.
    """

    sway_mm: float = 6.0
    lean: float = 0.1
    wavelength_mm: float = 150.0
    shift: tuple[float, float] = (0.0, 0.0)
    lesions: tuple[tuple[float, float, float, float], ...] = ()
    top_mm: float = 1e9
    bottom_mm: float = -1e9

    def center(self, z: npt.ArrayLike) -> FloatArray:
        """(..., ) heights to (..., 2) world R, A of the cord's centre."""
        height = np.asarray(z, dtype=np.float64)
        right = 0.02 * height + self.shift[0]
        front = (
            self.sway_mm * np.sin(2 * np.pi * height / self.wavelength_mm)
            + self.lean * height
            + self.shift[1]
        )
        return np.stack([right, front], axis=-1)

    def radius(self, ras: FloatArray) -> FloatArray:
        """(..., 3) world mm to (...) distance from the cord's centre in the horizontal plane."""
        return np.asarray(np.linalg.norm(ras[..., :2] - self.center(ras[..., 2]), axis=-1))

    def cord(self, ras: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether world points lie in the cord."""
        height = ras[..., 2]
        return np.asarray(
            (self.radius(ras) <= CORD_RADIUS_MM) & (height < self.top_mm) & (height > self.bottom_mm)
        )

    def labels(self, ras: FloatArray) -> npt.NDArray[np.int32]:
        """Number of the lesion (1, 2, ...) at world points, else 0."""
        out = np.zeros(ras.shape[:-1], np.int32)
        for number, (right, front, height, radius) in enumerate(self.lesions, start=1):
            middle = np.array([*(self.center(height) + np.array([right, front])), height])
            out[np.linalg.norm(ras - middle, axis=-1) <= radius] = number
        return out

    def intensity(self, ras: FloatArray) -> FloatArray:
        """T2-like values at world points: cord, bright CSF, vertebral bodies with discs, texture."""
        r = self.radius(ras)
        z = ras[..., 2]
        body = ras[..., 1] - self.center(z)[..., 1]
        disc = 1 / (1 + np.exp(8 * np.cos(2 * np.pi * z / 22.0) + 4))
        bone = np.where((body > 10) & (body < 30) & (np.abs(ras[..., 0]) < 16), 70 - 45 * disc, 45.0)
        spine = np.where((body < -14) & (body > -30) & (np.abs(ras[..., 0]) < 4) & (disc < 0.3), 110.0, bone)
        texture = 8 * np.sin(ras[..., 0] / 5.0) * np.cos(ras[..., 1] / 7.0) * np.sin(z / 9.0)
        around = np.where(r <= SAC_RADIUS_MM, 200.0, spine + texture)
        return np.where(self.cord(ras), 100.0 + 60.0 * (self.labels(ras) > 0), around)


def lattice(
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    size_mm: Sequence[float] = (48.0, 64.0, 100.0),
    center: Sequence[float] = (0.0, 0.0, 0.0),
    orientation: str = "RAS",
    rotation_deg: Sequence[float] = (0.0, 0.0, 0.0),
) -> Grid:
    """A lattice centred at a world point; spacing and size along R, A, S; stored in any orientation."""
    from scipy.spatial.transform import Rotation

    shape = np.maximum(np.round(np.asarray(size_mm) / spacing), 1).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", rotation_deg, degrees=True).as_matrix() * np.asarray(spacing)
    affine[:3, 3] = np.asarray(center) - affine[:3, :3] @ ((shape - 1) / 2)
    grid = Grid(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=affine)
    return restored_as(np.zeros(grid.shape, np.uint8), grid, orientation)[1]


def restored_as(
    data: npt.NDArray[np.generic], grid: Grid, orientation: str
) -> tuple[npt.NDArray[np.generic], Grid]:
    """The same image, its axes permuted and flipped so that it is stored as, say, ``PSR``."""
    now = nib.orientations.io_orientation(grid.affine)
    move = nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt(orientation))
    out = nib.orientations.apply_orientation(data, move)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(move, grid.shape)
    return np.ascontiguousarray(out), Grid(shape=out.shape, affine=affine)


def world_points(grid: Grid, *, offset: Sequence[float] = (0.0, 0.0, 0.0)) -> FloatArray:
    """(i, j, k, 3) world mm of the voxels, displaced by an offset in voxels."""
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return grid.to_world(ijk + np.asarray(offset))


def rendered(
    phantom: Phantom, grid: Grid, *, moved: npt.ArrayLike | None = None, samples: int = 3
) -> npt.NDArray[np.float32]:
    """The phantom seen through a lattice, averaged along the thickest axis.

    ``moved`` (4, 4) maps the phantom's world to the image's world: the patient moved, the header did not.
    """
    back = np.eye(4) if moved is None else np.linalg.inv(np.asarray(moved, dtype=np.float64))
    axis = int(np.argmax(grid.spacing))
    total = np.zeros(grid.shape)
    for step in (np.arange(samples) + 0.5) / samples - 0.5:
        offset = np.zeros(3)
        offset[axis] = step
        total += phantom.intensity(transform_points(back, world_points(grid, offset=offset)))
    return np.asarray(total / samples, dtype=np.float32)


def cord_mask(phantom: Phantom, grid: Grid, *, moved: npt.ArrayLike | None = None) -> npt.NDArray[np.bool_]:
    """The cord at voxel centres."""
    back = np.eye(4) if moved is None else np.linalg.inv(np.asarray(moved, dtype=np.float64))
    return phantom.cord(transform_points(back, world_points(grid)))


def lesion_labels(phantom: Phantom, grid: Grid) -> npt.NDArray[np.int32]:
    """Lesion numbers at voxel centres, inside the cord."""
    points = world_points(grid)
    return np.where(phantom.cord(points), phantom.labels(points), 0).astype(np.int32)


def cord_recipe(*names: str, register: Sequence[str] = (), window: tuple[int, int] = (48, 48)) -> Recipe:
    """A recipe with the given sequences, the first being the best anchor."""
    rules = tuple(
        SequenceRule(
            name=name, suffixes=("T2w",), planes=("sag", "ax", "iso"), register_slabs=name in register
        )
        for name in names
    )
    return Recipe(
        name="phantom",
        version="1",
        frame="centerline",
        target="lesion",
        sequences=rules,
        anchors=names,
        grid=GridSpec(window_vox=window),
    )
