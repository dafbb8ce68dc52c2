"""Which tissue lies at a point of the subject: the surroundings first, then the spine over them.

Everything here works on flat float32 arrays of subject-space points and is analytic, so any lattice can be
evaluated. The sizes are rounded adult means; they set a plausible scene, not a reference anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bids_scseg.synth.subject import FORAMEN_MM, Anatomy, Floats, Profiles, project, table_index
from bids_scseg.synth.tissues import Tissue

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

#: Marks points that the spine leaves to the surroundings.
NOTHING = 255
#: The spine is painted within these distances of the cord, mm: to the side, in front, behind; further behind
#: than the laminae there are only spinous processes, close to the midline.
NEAR_SIDE_MM, NEAR_FRONT_MM, NEAR_BACK_MM, NEAR_LAMINA_MM, NEAR_SPINOUS_MM = 27.0, 46.0, 62.0, 26.0, 8.0
#: Above this height, mm from the C2-C3 disc, there is only brain.
NEAR_TOP_MM = 115.0
#: Vertebral bodies reach this far behind the canal's front at most (0.081 of half their depth, under 24 mm),
#: arches this far in front of the cord's centre (the vertebral arteries, 6 + 2 mm).
BODY_REACH_MM, ARCH_REACH_MM = 2.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MuscleGrid:
    """Lattice of the muscle borders: stations along z, and a square across it centred on the cord."""

    stations: int
    size: int
    step_mm: float
    z_low_mm: float
    z_step_mm: float


MUSCLE_GRID = MuscleGrid(stations=14, size=180, step_mm=1.5, z_low_mm=-460.0, z_step_mm=44.0)


def paint(anatomy: Anatomy, xyz: Floats) -> Labels:
    """Tissue of subject-space points ``(3, n)`` float32 in mm, as ``(n,)`` uint8."""
    profiles = anatomy.profiles
    at = table_index(xyz[2])
    dx, dy = xyz[0] - profiles.x[at], xyz[1] - profiles.y[at]
    out = np.full(dx.shape, NOTHING, np.uint8)
    side = np.where(dy > -NEAR_LAMINA_MM, NEAR_SIDE_MM, NEAR_SPINOUS_MM).astype(np.float32)
    near = np.flatnonzero(
        (np.abs(dx) < side) & (dy < NEAR_FRONT_MM) & (dy > -NEAR_BACK_MM) & (xyz[2] < NEAR_TOP_MM)
    )
    if near.size:
        out[near] = _spine(anatomy, xyz[:, near])
    # far behind the cord a spinous process may end outside the skin, so the skin has the last word there
    rest = np.flatnonzero((out == NOTHING) | (dy < -NEAR_BACK_MM / 2))
    around = _surroundings(anatomy, xyz[2][rest], dx=dx[rest], dy=dy[rest], at=at[rest])
    spine = out[rest]
    out[rest] = np.where((spine == NOTHING) | (around <= Tissue.SKIN), around, spine)
    return out


def inside_ellipse(x: Floats, y: Floats, *, at: tuple[float, float], radii: tuple[float, float]) -> Mask:
    """Points within an axis-parallel ellipse."""
    return np.asarray(((x - at[0]) / radii[0]) ** 2 + ((y - at[1]) / radii[1]) ** 2 < 1)


# ---------------------------------------------------------------------------------------------- surroundings


def _surroundings(anatomy: Anatomy, z: Floats, *, dx: Floats, dy: Floats, at: npt.NDArray[np.intp]) -> Labels:
    """Everything but the spine, from skin to organs."""
    out = np.zeros(z.shape, np.uint8)
    profiles = anatomy.profiles
    front = np.where(dy > 0, profiles.skin_ant[at], profiles.skin_post[at])
    ratio = (np.abs(dx) / profiles.skin_half_rl[at]) ** 2.3 + (np.abs(dy) / front) ** 2.3
    body = np.flatnonzero(ratio < 1)
    if not body.size:
        return out
    x, y, h, rows = dx[body], dy[body], z[body], at[body]
    depth = np.hypot(x, y) * (np.maximum(ratio[body], 1e-4) ** (-1 / 2.3) - 1)
    x, y, h = _wobbled(anatomy, x, y, h)
    subcutis = profiles.subcutis[rows] * (1.0 + 0.35 * np.sin(h / 31 + x / 45))
    tissue = np.full(body.shape, Tissue.MUSCLE, np.uint8)
    border = _muscle_border(anatomy, x, y, h)
    tissue[border < 0.55] = Tissue.TENDON
    tissue[border < 0.32 + 0.006 * np.abs(x)] = Tissue.FAT
    _paint_neck(tissue, anatomy, x=x, y=y, z=h, rows=rows)
    _paint_face(tissue, anatomy, x=x, y=y, z=h, depth=depth)
    _paint_thorax(tissue, anatomy, x=x, y=y, z=h)
    tissue[depth < subcutis + 1.5] = Tissue.FAT
    _paint_head(tissue, anatomy, x=x, y=y, z=h)
    tissue[depth < 1.5] = Tissue.SKIN
    out[body] = tissue
    return out


def _wobbled(anatomy: Anatomy, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
    """The points moved by the subject's smooth deformation."""
    axes = [x, y, z]
    moved = [axis.copy() for axis in axes]
    for wave in anatomy.wobble.astype(np.float32):
        for a in range(3):
            b, c = (a + 1) % 3, (a + 2) % 3
            moved[a] += wave[a, 0] * np.sin(wave[a, 1] * axes[b] + wave[a, 2] * axes[c] + wave[a, 3])
    return moved[0], moved[1], moved[2]


def _muscle_border(anatomy: Anatomy, x: Floats, y: Floats, z: Floats) -> Floats:
    grid = MUSCLE_GRID
    i = np.clip(np.rint(x / grid.step_mm + grid.size / 2), 0, grid.size - 1).astype(np.intp)
    j = np.clip(np.rint(y / grid.step_mm + grid.size / 2), 0, grid.size - 1).astype(np.intp)
    where = np.clip((z - grid.z_low_mm) / grid.z_step_mm, 0, grid.stations - 1.001)
    low = where.astype(np.intp)
    weight = where - low
    flat, plane = anatomy.muscle.reshape(-1), grid.size * grid.size
    cell = low * plane + i * grid.size + j
    return np.asarray(flat[cell] * (1 - weight) + flat[cell + plane] * weight)


def _paint_neck(
    tissue: Labels, anatomy: Anatomy, *, x: Floats, y: Floats, z: Floats, rows: npt.NDArray[np.intp]
) -> None:
    """Throat, vessels and glands in front of the spine, from the mouth to the upper thorax."""
    profiles, size = anatomy.profiles, anatomy.shape
    wall = profiles.sac_ap[rows] + 1.5 + profiles.body_ap[rows]
    ahead = y - wall
    side = np.abs(x)
    throat = (ahead > 2) & (side < 24 * size[0]) & (z < 45) & (z > -150)
    tissue[throat] = Tissue.SOFT
    tissue[throat & (np.sin(x / 5 + z / 9) + np.sin(ahead / 4 - z / 13) > 1.35)] = Tissue.FAT
    gland = inside_ellipse(side, ahead, at=(17 * size[1], 13), radii=(7, 12)) & (z < -58) & (z > -105)
    tissue[gland] = Tissue.GLAND
    # pharynx (wide, flat), then the trachea, further in front the lower it lies
    drop = np.clip(-z - 30, 0, 120)
    wide = np.where(z > -30, 11.0, 8.5) * size[2]
    deep = np.where(z > -30, 5.0, 8.5) * size[2]
    centre = 9 + 0.13 * drop
    tube = (x / wide) ** 2 + ((ahead - centre) / deep) ** 2
    tissue[(tube < 1.7) & (z < 40) & (z > -130)] = Tissue.TENDON
    tissue[(tube < 1.0) & (z < 40) & (z > -130)] = Tissue.AIR
    gullet = inside_ellipse(x, ahead, at=(-2.0, 4.0), radii=(8.0, 3.0)) & (z < -60)
    tissue[gullet] = Tissue.MUSCLE
    artery = inside_ellipse(side, ahead, at=(26 * size[3], 4), radii=(3.4, 3.4))
    vein = inside_ellipse(side, ahead, at=(33 * size[3], 5), radii=(6.0 * size[4], 4.5))
    neck = (z < 45) & (z > -120)
    tissue[(artery | vein) & neck] = Tissue.VESSEL
    parotid = inside_ellipse(side, y, at=(50 * size[5], 18), radii=(10, 18)) & (z > -8) & (z < 38)
    tissue[parotid] = Tissue.GLAND
    small = inside_ellipse(side, ahead, at=(42 * size[6], -16), radii=(2.6, 2.0)) & neck
    tissue[small] = Tissue.VESSEL


def _paint_face(tissue: Labels, anatomy: Anatomy, *, x: Floats, y: Floats, z: Floats, depth: Floats) -> None:
    """Jaw, tongue, mouth and nose."""
    size = anatomy.shape
    face = (y > 38) & (z > -22) & (z < 75)
    if not face.any():
        return
    tongue = face & (z < 30) & (((x / 24) ** 2 + ((y - 62) / 26) ** 2 + ((z - 4) / 22) ** 2) < size[7])
    tissue[face & (z < 36)] = Tissue.SOFT
    tissue[tongue] = Tissue.MUSCLE
    tissue[tongue & (np.sin(x / 3) * np.sin(z / 4 + y / 6) > 0.7)] = Tissue.FAT
    jaw = face & (depth > 9) & (depth < 20) & (z > -14) & (z < 10)
    tissue[jaw] = Tissue.CORTEX
    tissue[jaw & (depth > 11.5) & (depth < 17.5) & (z > -11) & (z < 7)] = Tissue.MARROW
    teeth = face & (depth > 10) & (depth < 18) & (z >= 10) & (z < 26)
    tissue[teeth] = Tissue.CORTEX
    tissue[face & (z > 28) & (z < 31 + 3 * np.sin(y / 9)) & (np.abs(x) < 18)] = Tissue.AIR
    nose = face & (z > 36) & (depth > 6)
    tissue[nose] = Tissue.SOFT
    tissue[nose & (np.sin(x / 3.1) + np.sin(z / 4.3 + x / 9) + 0.4 * np.sin(y / 11) > 0.1)] = Tissue.AIR
    tissue[nose & (np.abs(np.abs(x) - 30) < 1.5)] = Tissue.CORTEX


def _paint_thorax(tissue: Labels, anatomy: Anatomy, *, x: Floats, y: Floats, z: Floats) -> None:
    """Lungs with ribs, mediastinum with heart and aorta, and the organs below the diaphragm."""
    size = anatomy.shape
    low = z < -98
    if not low.any():
        return
    side = np.abs(x)
    apex = np.clip((-98 - z) / 90, 0, 1) ** 0.5
    reach = ((side - 62) / (58 * size[8] * apex + 0.1)) ** 2 + ((y - 32) / (74 * size[8] * apex + 0.1)) ** 2
    chest = low & (z > -325 + 18 * np.sin(x / 40))
    wall = low & (reach < 1.5)
    tissue[wall & (np.sin((z + 0.45 * side + 0.3 * y) / 3.9) > 0.25)] = Tissue.MARROW
    tissue[wall & (reach < 1.12)] = Tissue.TENDON
    tissue[chest & (reach < 1)] = Tissue.LUNG
    middle = low & (side < 34) & (y > 26) & (y < 110) & ~(reach < 1)
    tissue[middle] = Tissue.SOFT
    tissue[middle & (np.sin(x / 7 + z / 19) + np.sin(y / 8 - z / 23) > 0.5)] = Tissue.FAT
    heart = ((x + 14) / 48) ** 2 + ((y - 82) / 38) ** 2 + ((z + 250) / 55) ** 2 < size[9]
    tissue[heart & low] = Tissue.VESSEL
    aorta = inside_ellipse(x, y, at=(-20 * size[10], 34), radii=(10, 10)) & (z < -155)
    tissue[aorta] = Tissue.VESSEL
    belly = low & ~chest & (y > 12) & (y < 125)
    tissue[belly & (np.abs(x + 20) > 45)] = Tissue.GLAND
    tissue[belly & (np.sin(x / 9) + np.sin(y / 11 + z / 15) > 0.6)] = Tissue.SOFT


def _paint_head(tissue: Labels, anatomy: Anatomy, *, x: Floats, y: Floats, z: Floats) -> None:
    """Skull and brain."""
    size = anatomy.shape
    head = np.flatnonzero(z > FORAMEN_MM - 12)
    if not head.size:
        return
    hx, hy, hz = x[head], y[head], z[head]
    rx, ry, rz = 69 * size[11], 88 * size[11], 76.0
    # flatten the base in front, where the skull base rises above the face
    lift = np.clip((hy - 8) / 60, 0, 1) * 26
    skull = np.sqrt((hx / rx) ** 2 + ((hy - 4) / ry) ** 2 + ((hz - lift - 110) / rz) ** 2)
    inside = (1 - skull) * 75
    label = tissue[head]
    label[inside > -7] = Tissue.CORTEX
    label[(inside > -5) & (inside < -1.5)] = Tissue.MARROW
    label[inside > 0] = Tissue.CSF
    gyri = (
        np.sin(hx / 4.1 + np.sin(hz / 7))
        * np.sin(hy / 4.7 + np.sin(hx / 8))
        * np.sin(hz / 4.4 + np.sin(hy / 9))
    )
    cerebrum = (inside > 3.0 + 5 * (gyri > 0.3)) & (hz > 80 - 0.18 * hy)
    label[cerebrum] = Tissue.BRAIN_GREY
    label[cerebrum & (inside > 8 + 9 * gyri)] = Tissue.BRAIN_WHITE
    split = cerebrum & (np.abs(hx) < 1.3) & ((hz > 150) | (inside < 30))
    label[split] = Tissue.CSF
    ventricle = ((np.abs(hx) - 11) / 7) ** 2 + ((hy - 8) / 33) ** 2 + ((hz - 122) / 9) ** 2 < 1
    label[cerebrum & ventricle] = Tissue.CSF
    deep = ((np.abs(hx) - 18) / 10) ** 2 + ((hy - 8) / 20) ** 2 + ((hz - 108) / 14) ** 2 < 1
    label[cerebrum & deep & ~ventricle] = Tissue.BRAIN_GREY
    folia = np.sin((hz + 0.35 * hy) / 1.5)
    lobe = ((np.abs(hx) - 18) / 38) ** 2 + ((hy + 42) / 32) ** 2 + ((hz - 66) / 26) ** 2
    cerebellum = (lobe < 1) & (inside > 1.5) & ~cerebrum
    label[cerebellum] = np.where(folia[cerebellum] > -0.75, Tissue.BRAIN_GREY, Tissue.CSF)
    label[cerebellum & (lobe < 0.35 + 0.1 * folia)] = Tissue.BRAIN_WHITE
    tissue[head] = label


# ------------------------------------------------------------------------------------------------------ spine


def _spine(anatomy: Anatomy, xyz: Floats) -> Labels:
    """Vertebrae, canal and cord at points near the cord, `NOTHING` elsewhere."""
    profiles = anatomy.profiles
    foot, u, v = project(profiles, xyz)
    at = table_index(foot)
    out = np.full(foot.shape, NOTHING, np.uint8)
    # the canal has the last word inside the dura, so bone is painted only where it can show
    bony = (foot < FORAMEN_MM - 2) & (_dural(profiles, u=u, v=v, at=at) >= 1)
    front = np.flatnonzero(bony & (v > _canal_edge(profiles, at) - BODY_REACH_MM))
    out[front] = _bodies(profiles, u=u[front], v=v[front], z=foot[front], at=at[front])
    back = np.flatnonzero(bony & (v < ARCH_REACH_MM))
    out[back] = _arches(out[back], profiles, u=u[back], v=v[back], z=foot[back], at=at[back])
    _paint_canal(out, anatomy, u=u, v=v, z=foot, at=at)
    return out


def _dural(profiles: Profiles, *, u: Floats, v: Floats, at: npt.NDArray[np.intp]) -> Floats:
    """Squared radius relative to the dural sac's surface, below 1 inside it."""
    w = v - profiles.sac_shift[at]
    return np.asarray((u / profiles.sac_rl[at]) ** 2 + (w / profiles.sac_ap[at]) ** 2)


def _canal_edge(profiles: Profiles, at: npt.NDArray[np.intp]) -> Floats:
    """Where the canal ends in front (v in mm)."""
    return np.asarray(profiles.sac_shift[at] + profiles.sac_ap[at] + 1.2)


def _bodies(profiles: Profiles, *, u: Floats, v: Floats, z: Floats, at: npt.NDArray[np.intp]) -> Labels:
    """Vertebral bodies with cortical shells and end plates, discs, dens and the arch of C1."""
    out = np.full(u.shape, NOTHING, np.uint8)
    front = _canal_edge(profiles, at)
    phase, period = profiles.phase[at], profiles.period[at]
    waist = 1 - 0.09 * np.sin(np.pi * phase)
    half, deep = profiles.body_half_rl[at] * waist, profiles.body_ap[at] / 2 * waist
    centre = front + profiles.body_ap[at] / 2 + (profiles.body_ap[at] / 2 - deep) * -0.3
    shape = (np.abs(u) / half) ** 3.2 + (np.abs(v - centre) / deep) ** 3.2
    # the end plates bulge away from the disc's centre
    gap = profiles.disc_half[at] * (1.0 - 0.25 * np.minimum(shape, 1))
    to_disc = np.minimum(phase, 1 - phase) * period
    real = (z < 9) | (np.minimum(phase, 1 - phase) < 0) | (phase > 0.5)
    solid = shape < 1
    out[shape < 1.28] = Tissue.LIGAMENT
    out[solid] = Tissue.MARROW
    out[solid & (shape > 0.82)] = Tissue.CORTEX
    below = z < 18
    out[solid & below & real & (to_disc < gap + 0.9)] = Tissue.CORTEX
    out[solid & below & real & (to_disc < gap)] = Tissue.DISC
    out[solid & below & real & (to_disc < gap) & (shape > 0.55)] = Tissue.LIGAMENT
    arch = inside_ellipse(u, v - (front + profiles.body_ap[at] + 3.5), at=(0, 0), radii=(9, 3.2))
    ring = arch & (np.abs(z - 31) < 5.5)
    out[ring] = Tissue.MARROW
    out[ring & ~inside_ellipse(u, v - (front + profiles.body_ap[at] + 3.5), at=(0, 0), radii=(7, 2.0))] = (
        Tissue.CORTEX
    )
    return out


def _arches(
    out: Labels, profiles: Profiles, *, u: Floats, v: Floats, z: Floats, at: npt.NDArray[np.intp]
) -> Labels:
    """Laminae, articular pillars with foramina, vertebral arteries and spinous processes, over ``out``."""
    side, period = np.abs(u), profiles.period[at]
    wide = profiles.sac_rl[at] + profiles.fat_side[at]
    back = profiles.sac_ap[at] - profiles.sac_shift[at] + profiles.fat_post[at]
    phase = profiles.phase[at]
    cervical = z > -95
    # lamina: a shell behind the canal, shingled downwards
    shell = (u / wide) ** 2 + (v / back) ** 2
    thick = np.sqrt(shell) * back - back
    shingle = np.mod(phase + thick / period * 0.8, 1)
    behind = (v < -0.25 * back) & (thick > 0) & (thick < 6.0)
    out[behind & (thick < 3)] = Tissue.LIGAMENT
    bone = behind & (shingle > 0.12) & (shingle < 0.72)
    out[bone] = Tissue.MARROW
    out[bone & ((thick < 1.2) | (thick > 4.6) | (shingle < 0.17) | (shingle > 0.67))] = Tissue.CORTEX
    # pillars beside the canal; between two pedicles the foramen with root and fat
    hub = inside_ellipse(side - wide, v, at=(6.5, -3.5), radii=(7.0, 8.0)) & (z < 22)
    joint = np.mod(phase - (v + 3.5) / period * 0.7, 1)
    out[hub] = Tissue.MARROW
    rim = ~inside_ellipse(side - wide, v, at=(6.5, -3.5), radii=(5.6, 6.6))
    out[hub & (rim | (np.abs(joint - 0.05) < 0.035) | (joint > 0.985))] = Tissue.CORTEX
    hole = (z < 22) & (side > wide - 1) & (side < wide + 9) & (v > -2) & (v < 6.5)
    pedicle = (phase > 0.45) & (phase < 0.88)
    out[hole & pedicle & (side < wide + 6)] = Tissue.MARROW
    out[hole & ~pedicle] = Tissue.FAT
    root = hole & ~pedicle & (np.abs(v - 1.5) < 2.2) & (np.abs(phase - 0.2) < 0.12)
    out[root] = Tissue.ROOT
    artery = inside_ellipse(side - wide, v, at=(5.5, 6.0), radii=(2.0, 2.0)) & cervical & (z > -80)
    out[artery] = Tissue.VESSEL
    strip = np.flatnonzero((z < 20) & (-v - back > 2) & (side < 4.5))
    out[strip] = _spinous(
        out[strip], profiles, u=u[strip], z=z[strip], at=at[strip], behind=-v[strip] - back[strip]
    )
    rear = inside_ellipse(u, v + back + 3.0, at=(0, 0), radii=(14, 3.0)) & (np.abs(z - 30) < 4)
    out[rear] = Tissue.MARROW
    return out


def _spinous(
    out: Labels, profiles: Profiles, *, u: Floats, z: Floats, at: npt.NDArray[np.intp], behind: Floats
) -> Labels:
    """Spinous processes, thin plates in the midline that lean downwards, over ``out``."""
    root = table_index(z + profiles.spinous_slope[at] * np.clip(behind, 0, 60))
    length, phase = profiles.spinous_mm[root], profiles.phase[root]
    reach = behind / length
    low, high = 0.14 + 0.05 * reach, 0.66 - 0.10 * reach
    inside = (reach < 1) & (phase > low) & (phase < high) & (np.abs(u) < 2.6 + 1.6 * reach)
    out[(reach < 1) & (np.abs(u) < 1.2)] = Tissue.LIGAMENT
    out[(reach < 0.9) & (np.abs(u) < 2.0) & (np.sin(z / 2.3) > 0.4)] = Tissue.FAT
    out[inside] = Tissue.MARROW
    edge = (phase < low + 0.06) | (phase > high - 0.06) | (reach > 0.95) | (np.abs(u) > 1.6 + 1.6 * reach)
    out[inside & edge] = Tissue.CORTEX
    return out


def _paint_canal(
    out: Labels, anatomy: Anatomy, *, u: Floats, v: Floats, z: Floats, at: npt.NDArray[np.intp]
) -> None:
    """Epidural fat, dura, fluid, roots, cord and brainstem."""
    profiles = anatomy.profiles
    wide, deep = profiles.sac_rl[at], profiles.sac_ap[at]
    w = v - profiles.sac_shift[at]
    sac = (u / wide) ** 2 + (w / deep) ** 2
    close = np.flatnonzero(sac < 4)
    if not close.size:
        return
    u, v, w, z, at, sac = u[close], v[close], w[close], z[close], at[close], sac[close]
    wide, deep = wide[close], deep[close]
    label = out[close]
    room = deep + np.where(w < 0, profiles.fat_post[at], 0.7)
    epidural = ((u / (wide + profiles.fat_side[at])) ** 2 + (w / room) ** 2 < 1) & (z < FORAMEN_MM)
    label[epidural] = np.where(w[epidural] > 0.3 * deep[epidural], Tissue.LIGAMENT, Tissue.EPIDURAL)
    ring = 1 + 0.5 / deep
    label[(sac < ring * ring) & (z < FORAMEN_MM + 4)] = Tissue.LIGAMENT
    label[sac < 1] = Tissue.CSF
    _paint_cord(label, anatomy, u=u, v=v, z=z, at=at, sac=sac)
    out[close] = label


def _paint_cord(
    label: Labels, anatomy: Anatomy, *, u: Floats, v: Floats, z: Floats, at: npt.NDArray[np.intp], sac: Floats
) -> None:
    profiles = anatomy.profiles
    a, b = profiles.cord_rl[at], profiles.cord_ap[at]
    un, vn = np.abs(u) / a, v / b
    rho = un * un + vn * vn
    alive = z > anatomy.conus_z
    # rootlets leave at the cord's four corners; below the conus they are the cauda equina
    leave = profiles.phase[at]
    spread = 0.95 + 0.5 * np.abs(leave - 0.5)
    rootlet = ((un - spread) / 0.13) ** 2 + ((np.abs(vn) - 0.62) / 0.16) ** 2 < 1
    label[rootlet & (sac < 0.95) & (rho > 1) & alive & (z < 30)] = Tissue.ROOT
    sparseness, front = anatomy.cauda
    cauda = (np.sin(u * 2.2) + np.sin(v * 2.6 + u) > sparseness) & (v - np.float32(front) < 0) & (sac < 0.85)
    label[cauda & ~alive] = Tissue.ROOT
    cord = (rho < 1) & alive & (z < FORAMEN_MM)
    label[cord] = Tissue.CORD_WHITE
    inner = np.flatnonzero(cord & (rho < 0.85))
    grey = in_grey_matter(un[inner], vn[inner], profiles.grey[at[inner]])
    label[inner[grey]] = Tissue.CORD_GREY
    label[(rho < 1) & (z >= FORAMEN_MM)] = Tissue.BRAINSTEM


def in_grey_matter(side: Floats, front: Floats, size: Floats) -> Mask:
    """The butterfly in coordinates relative to the cord's half axes.

    Parameters
    ----------
    side, front
        ``|u| / a`` and ``v / b``, ``(n,)``.
    size
        Size relative to the cervical cord's, ``(n,)``.
    """
    anterior = ((side - 0.27) / (0.19 * size)) ** 2 + ((front - 0.20) / (0.30 * size)) ** 2 < 1
    # posterior horn: a tapering band from the commissure to the dorsolateral surface
    along = np.clip((-0.02 - front) / 0.62, 0, 1)
    middle = 0.19 + 0.26 * along
    posterior = (front < 0.05) & (front > -0.64) & (np.abs(side - middle) < (0.115 - 0.045 * along) * size)
    bridge = (side < 0.27) & (np.abs(front + 0.02) < 0.07 * size)
    return np.asarray(anterior | posterior | bridge)


def canal_front(profiles: Profiles, z: float) -> npt.NDArray[np.float64]:
    """Where the front of the canal meets the spine at height ``z`` (mm): subject-space point ``(3,)``."""
    at = int(table_index(np.array([z]))[0])
    ahead = float(profiles.sac_shift[at] + profiles.sac_ap[at] + 1.2)
    slope = float(profiles.slope_y[at])
    scale = ahead / float(np.sqrt(1 + slope * slope))
    return np.array([float(profiles.x[at]), float(profiles.y[at]) + scale, z - slope * scale])
