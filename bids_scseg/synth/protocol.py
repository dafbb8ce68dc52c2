"""The scans of a session: lattices in native acquisition geometry, file names and sidecars."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bids_scseg.synth.scanner import Acquisition
from bids_scseg.synth.scenario import ANCHORS, Scenario
from bids_scseg.synth.subject import (
    FORAMEN_MM,
    Anatomy,
    Doubles,
    Rng,
    centerline_world,
    to_world,
    z_axis,
)

Sidecar = dict[str, str | float | bool | list[float]]

#: World direction of each orientation letter: axis, sign.
LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
#: Stored orientations of sagittal, axial and 3-D scans.
SAGITTAL_CODES, AXIAL_CODES, VOLUME_CODES = (
    ("PSR", "RAS", "PIL", "LAS"),
    ("LAS", "RAS", "LPS"),
    ("RAS", "PSR", "LAS"),
)
#: Field of view from front to back of a sagittal scan, and its width, mm.
SAGITTAL_FOV_MM, SAGITTAL_WIDTH_MM = 200.0, 48.0
#: Overlap of neighbouring slabs, mm.
OVERLAP_MM = 45.0
#: acq entity and suffix of each sequence; the acq entities differ, because masks lose the suffix of their
#: source.
NAMES = {
    "T2Sag": ("sag", "T2w"), "STIR": ("sagstir", "T2w"), "T2StarAx": ("axgre", "T2starw"), "T2Ax": ("ax",
    "T2w"), "T1Sag": ("sagt1", "T1w"), "MP2RAGE": ("iso", "UNIT1"), "PSIR": ("sagpsir", "T1w"),
}  # fmt: skip
#: Sequence parameters for the sidecars: repetition, echo and inversion time (s), flip angle (degrees).
TIMING: dict[str, tuple[float, float, float | None, float]] = {
    "T2Sag": (3.5, 0.095, None, 150.0), "STIR": (3.8, 0.045, 0.22, 150.0), "T2StarAx": (0.6, 0.018, None,
    28.0), "T2Ax": (4.2, 0.092, None, 150.0), "T1Sag": (0.65, 0.0095, None, 150.0), "MP2RAGE": (5.0, 0.003,
    None, 4.0), "PSIR": (4.0, 0.013, 0.35, 130.0), "T1Brain": (2.3, 0.003, 0.9, 9.0), "MT": (0.035, 0.0038,
    None, 9.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """One file to be scanned.

    Attributes
    ----------
    sequence
        Key of the recipe's sequence; empty for a distractor.
    entities
        BIDS entities without subject and session, in the order of the name.
    suffix
        BIDS suffix.
    acquisition
        Geometry and quality.
    sidecar
        What the JSON beside the image says.
    contrast
        ``""``, or what makes a distractor: ``gadolinium``, ``phase``, ``mt-on``, ``mt-off``.
    """

    sequence: str
    entities: dict[str, str]
    suffix: str
    acquisition: Acquisition
    sidecar: Sidecar = field(default_factory=dict)
    contrast: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """A scan's geometry before it is placed: voxel size and extent in mm along RL, AP, SI."""

    codes: str
    voxel_mm: tuple[float, float, float]
    fov_mm: tuple[float, float, float]
    slices_along: int
    thickness_mm: float


def plan_session(rng: Rng, anatomy: Anatomy, scenario: Scenario) -> list[Scan]:
    """The scans of one session, distractors included, in a fixed order."""
    reference = next(name for name in ANCHORS if name in scenario.sequences)
    turn = np.deg2rad(rng.normal(0, [0, 3, 5])) if scenario.oblique else np.zeros(3)
    scans: list[Scan] = []
    for name in scenario.sequences:
        move = np.zeros(3) if name == reference else _shift(rng, scenario.displacement_mm)
        builder = {"T2StarAx": _axial_gre, "T2Ax": _axial_t2, "MP2RAGE": _volume}.get(name)
        if builder is None:
            scans += _sagittal(rng, anatomy, scenario, name=name, move=move, turn=turn)
        else:
            scans += builder(rng, anatomy, scenario, name=name, move=move)
    for kind in scenario.distractors:
        scans += _distractor(rng, anatomy, scans, kind)
    return scans


def seam_heights(slabs: int) -> list[tuple[float, float]]:
    """Lower and upper end of each sagittal slab in mm from the C2-C3 disc, top slab first."""
    top, bottom = 58.0, -420.0
    length = (top - bottom + OVERLAP_MM * (slabs - 1)) / slabs
    step = length - OVERLAP_MM
    return [(top - n * step - length, top - n * step) for n in range(slabs)]


def lattice(plane: Plane, *, centre: Doubles, turn: Doubles) -> tuple[tuple[int, int, int], Doubles]:
    """Shape and affine of a plane centred at a world point, turned about x, y, z by ``turn`` radians."""
    shape, affine = [0, 0, 0], np.eye(4)
    for axis, letter in enumerate(plane.codes):
        direction, sign = LETTERS[letter]
        shape[axis] = max(1, round(plane.fov_mm[direction] / plane.voxel_mm[direction]))
        affine[:3, axis] = 0
        affine[direction, axis] = sign * plane.voxel_mm[direction]
    affine[:3, :3] = rigid(turn, np.zeros(3))[:3, :3] @ affine[:3, :3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # rounded to what a NIfTI header keeps, so that truth and file agree
    return (shape[0], shape[1], shape[2]), affine.astype(np.float32).astype(float)


def rigid(turn: Doubles, shift: Doubles) -> Doubles:
    """Rotation about x, y, z by ``turn`` (radians), then ``shift`` (mm), as a 4×4 matrix."""
    cx, cy, cz = np.cos(turn)
    sx, sy, sz = np.sin(turn)
    out = np.eye(4)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    out[:3, :3] = about_z @ about_y @ about_x
    out[:3, 3] = shift
    return out


# ---------------------------------------------------------------------------------------------------- planes


def _shift(rng: Rng, size_mm: float) -> Doubles:
    """A random shift of at most ``size_mm``."""
    direction = rng.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction) * size_mm * rng.uniform(0.3, 1.0))


def _about(point: Doubles, turn: Doubles, shift: Doubles) -> Doubles:
    """Rigid motion that turns about ``point`` and then shifts."""
    out = rigid(turn, np.zeros(3))
    out[:3, 3] = point - out[:3, :3] @ point + shift
    return out


def _cord_box(anatomy: Anatomy, low: float, high: float) -> tuple[Doubles, Doubles]:
    """Centre and size in world mm of the box round the cord's centerline between two heights."""
    points = centerline_world(anatomy, np.linspace(low, high, 25))
    return (points.min(0) + points.max(0)) / 2, np.ptp(points, axis=0)


def _acquisition(
    rng: Rng, name: str, plane: Plane, *, centre: Doubles, turn: Doubles, motion: Doubles, phase: str
) -> Acquisition:
    shape, affine = lattice(plane, centre=centre, turn=turn)
    fluid = {"T2Sag": 0.7, "STIR": 0.9, "T2Ax": 1.0, "T2StarAx": 0.3}.get(name, 0.0)
    return Acquisition(
        sequence=name,
        shape=shape,
        affine=affine,
        slice_axis=_axis_of(plane.codes, plane.slices_along),
        thickness_mm=plane.thickness_mm,
        motion=motion,
        snr=float(rng.uniform(14, 26)),
        coil_mm=float(rng.uniform(70, 140)) if plane.slices_along == 0 else float(rng.choice([0, 150])),
        flow=fluid * float(rng.uniform(0.3, 1.2)),
        ghost=float(rng.uniform(0, 0.9)),
        phase_axis=_axis_of(plane.codes, 1 if phase == "AP" else 2),
        noisy_air=name == "MP2RAGE" and bool(rng.random() < 0.6),
    )


def _axis_of(codes: str, direction: int) -> int:
    return next(axis for axis, letter in enumerate(codes) if LETTERS[letter][0] == direction)


def _choose(rng: Rng, codes: tuple[str, ...]) -> str:
    return codes[int(rng.integers(len(codes)))]


def _sagittal(
    rng: Rng, anatomy: Anatomy, scenario: Scenario, *, name: str, move: Doubles, turn: Doubles
) -> list[Scan]:
    """Sagittal slabs from the top downwards; lower ones a little misplaced against the first."""
    slabs = scenario.slabs if name == "T2Sag" else min(scenario.slabs, 2)
    heights = seam_heights(slabs) if name in ("T2Sag", "STIR") else [(-190.0, 58.0)]
    pixel, thick = rng.uniform(0.7, 0.9), rng.uniform(2.5, 3.2)
    gap, codes = thick * rng.choice([1.0, 1.1]), _choose(rng, SAGITTAL_CODES)
    scans = []
    for number, (low, high) in enumerate(heights):
        centre, size = _cord_box(anatomy, low, min(high, FORAMEN_MM))
        depth = size[1] + 44 if scenario.compact else SAGITTAL_FOV_MM
        width = size[0] + (27 if scenario.compact else SAGITTAL_WIDTH_MM - 12)
        centre[2] = to_world(anatomy, [[0, 0, (low + high) / 2]])[0, 2]
        centre[1] += 0 if scenario.compact else 22
        plane = Plane(
            codes=codes,
            voxel_mm=(gap, pixel, pixel),
            fov_mm=(width, depth, high - low),
            slices_along=0,
            thickness_mm=thick,
        )
        slip = _shift(rng, scenario.misplacement_mm) if number else np.zeros(3)
        lean = np.deg2rad(rng.normal(0, 0.25 * scenario.misplacement_mm, 3)) if number else np.zeros(3)
        acquisition = _acquisition(
            rng, name, plane, centre=centre, turn=turn, motion=_about(centre, lean, move + slip), phase="SI"
        )
        chunk = {"chunk": str(number + 1)} if len(heights) > 1 else {}
        scans.append(_scan(name, acquisition, chunk))
    return scans


def _stack(
    rng: Rng,
    anatomy: Anatomy,
    scenario: Scenario,
    *,
    name: str,
    span: tuple[float, float],
    plane: Plane,
    move: Doubles,
) -> Acquisition:
    """An axial stack between two heights, across the cord's mean direction."""
    low, high = centerline_world(anatomy, np.array(span))
    centre, size = _cord_box(anatomy, *span)
    lean = float(np.arctan2(high[1] - low[1], high[2] - low[2]))
    # stacks are tilted half way to the cord's direction: technicians tilt, but not fully
    turn = np.array([-lean * rng.uniform(0.3, 0.9), 0.0, 0.0])
    fov = (36.0, 36.0 + 0.6 * size[1]) if scenario.compact else plane.fov_mm[:2]
    extent = float(np.linalg.norm(high - low))
    placed = Plane(
        codes=plane.codes, voxel_mm=plane.voxel_mm, fov_mm=(*fov, extent), slices_along=2,
        thickness_mm=plane.thickness_mm,
    )  # fmt: skip
    if not scenario.compact:
        centre = centre + np.array([0, 8.0, 0])
    return _acquisition(
        rng, name, placed, centre=centre, turn=turn, motion=_about(centre, np.zeros(3), move), phase="AP"
    )


def _axial_gre(rng: Rng, anatomy: Anatomy, scenario: Scenario, *, name: str, move: Doubles) -> list[Scan]:
    """Two axial T2*w stacks: C1-C3 and C4-C7."""
    pixel, thick = rng.uniform(0.45, 0.6), rng.uniform(3.0, 5.0)
    fov = rng.uniform(100, 140)
    plane = Plane(
        codes=_choose(rng, AXIAL_CODES), voxel_mm=(pixel, pixel, thick), fov_mm=(fov, fov, 0), slices_along=2,
        thickness_mm=thick,
    )  # fmt: skip
    levels = anatomy.level_z
    spans = [(levels["C3"][0], levels["C1"][1] - 6), (levels["C7"][0], levels["C4"][1])]
    scans = []
    for number, span in enumerate(spans, start=1):
        stack = _stack(rng, anatomy, scenario, name=name, span=span, plane=plane, move=move)
        scans.append(_scan(name, stack, {"chunk": str(number)}))
    return scans


def _axial_t2(rng: Rng, anatomy: Anatomy, scenario: Scenario, *, name: str, move: Doubles) -> list[Scan]:
    """One axial T2w stack with gaps, over part of the cord."""
    pixel, thick = rng.uniform(0.5, 0.7), rng.uniform(3.0, 4.5)
    gap = thick * rng.uniform(1.1, 1.65)
    fov = rng.uniform(110, 150)
    plane = Plane(
        codes=_choose(rng, AXIAL_CODES), voxel_mm=(pixel, pixel, gap), fov_mm=(fov, fov, 0), slices_along=2,
        thickness_mm=thick,
    )  # fmt: skip
    first, last = [("C2", "T4"), ("C7", "T9"), ("C2", "C7")][int(rng.integers(3))]
    span = (anatomy.level_z[last][0], anatomy.level_z[first][1])
    return [_scan(name, _stack(rng, anatomy, scenario, name=name, span=span, plane=plane, move=move), {})]


def _volume(rng: Rng, anatomy: Anatomy, scenario: Scenario, *, name: str, move: Doubles) -> list[Scan]:
    """MP2RAGE at 1 mm, from the posterior fossa to the upper thorax."""
    low, high = -150.0, 62.0
    centre, size = _cord_box(anatomy, low, FORAMEN_MM)
    centre[2] = to_world(anatomy, [[0, 0, (low + high) / 2]])[0, 2]
    fov = (size[0] + 34, size[1] + 40) if scenario.compact else (136.0, 168.0)
    if not scenario.compact:
        centre[1] += 12
    plane = Plane(
        codes=_choose(rng, VOLUME_CODES), voxel_mm=(1.0, 1.0, 1.0), fov_mm=(*fov, high - low), slices_along=0,
        thickness_mm=1.0,
    )  # fmt: skip
    motion = _about(centre, np.zeros(3), move)
    acquisition = _acquisition(rng, name, plane, centre=centre, turn=np.zeros(3), motion=motion, phase="AP")
    return [_scan(name, acquisition, {})]


# ----------------------------------------------------------------------------------------------- distractors


def _distractor(rng: Rng, anatomy: Anatomy, scans: list[Scan], kind: str) -> list[Scan]:
    """Images that real folders hold beside the sequences of the recipe."""
    if kind == "brain":
        return [_brain(rng, anatomy)]
    if kind == "mt":
        return _mt_pair(rng, anatomy)
    if kind == "gadolinium":
        source = next(scan for scan in scans if scan.sequence == "T1Sag")
        sidecar = source.sidecar | {"ContrastBolusIngredient": "GADOLINIUM"}
        return [_copy(source, {"acq": source.entities["acq"], "ce": "gadolinium"}, sidecar, "gadolinium")]
    if kind == "phase":
        source = next(scan for scan in scans if scan.sequence == "T2StarAx")
        entities = {"acq": source.entities["acq"], "part": "phase", "chunk": source.entities["chunk"]}
        return [_copy(source, entities, source.sidecar | {"Units": "arbitrary"}, "phase")]
    return _rerun(scans)


def _copy(source: Scan, entities: dict[str, str], sidecar: Sidecar, contrast: str) -> Scan:
    return Scan(
        sequence="", entities=entities, suffix=source.suffix, acquisition=source.acquisition, sidecar=sidecar,
        contrast=contrast,
    )  # fmt: skip


def _rerun(scans: list[Scan]) -> list[Scan]:
    """Replace the axial T2w by a first run with strong motion and a repeated run."""
    source = next(scan for scan in scans if scan.sequence == "T2Ax")
    scans.remove(source)
    out = []
    for run in ("1", "2"):
        scan = source.acquisition
        worse = Acquisition(
            sequence=scan.sequence, shape=scan.shape, affine=scan.affine, slice_axis=scan.slice_axis,
            thickness_mm=scan.thickness_mm, motion=scan.motion, snr=scan.snr * (0.7 if run == "1" else 1.0),
            coil_mm=scan.coil_mm, flow=scan.flow, ghost=4.0 if run == "1" else scan.ghost,
            phase_axis=scan.phase_axis, noisy_air=False,
        )  # fmt: skip
        out.append(
            Scan(sequence="T2Ax", entities=source.entities | {"run": run}, suffix="T2w", acquisition=worse,
                 sidecar=source.sidecar)
        )  # fmt: skip
    return out


def _brain(rng: Rng, anatomy: Anatomy) -> Scan:
    plane = Plane(
        codes="RAS", voxel_mm=(1.2, 1.2, 1.2), fov_mm=(170, 210, 170), slices_along=0, thickness_mm=1.2
    )
    centre = to_world(anatomy, [[0, float(np.interp(110, z_axis(), anatomy.profiles.y)) + 4, 122.0]])[0]
    acquisition = _acquisition(
        rng, "T1Brain", plane, centre=centre, turn=np.zeros(3), motion=np.eye(4), phase="AP"
    )
    return Scan(
        sequence="", entities={"acq": "brain"}, suffix="T1w", acquisition=acquisition,
        sidecar=_sidecar("T1Brain", acquisition) | {"BodyPart": "BRAIN"},
    )  # fmt: skip


def _mt_pair(rng: Rng, anatomy: Anatomy) -> list[Scan]:
    plane = Plane(
        codes="LAS", voxel_mm=(0.9, 0.9, 5.0), fov_mm=(170, 170, 0), slices_along=2, thickness_mm=5.0
    )
    span = (anatomy.level_z["C5"][0], anatomy.level_z["C2"][1])
    stack = _stack(
        rng, anatomy, Scenario(name="mt"), name="MT", span=span, plane=plane, move=_shift(rng, 1.0)
    )
    return [
        Scan(
            sequence="", entities={"acq": "ax", "mt": state}, suffix="MTR", acquisition=stack,
            sidecar=_sidecar("MT", stack) | {"MTState": state == "on"}, contrast=f"mt-{state}",
        )
        for state in ("on", "off")
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------- sidecars


def _scan(name: str, acquisition: Acquisition, more: dict[str, str]) -> Scan:
    acq, suffix = NAMES[name]
    return Scan(
        sequence=name,
        entities={"acq": acq} | more,
        suffix=suffix,
        acquisition=acquisition,
        sidecar=_sidecar(name, acquisition),
    )


def _sidecar(name: str, acquisition: Acquisition) -> Sidecar:
    """What a scanner's JSON would say about the acquisition."""
    repetition, echo, inversion, flip = TIMING[name]
    spacing = float(np.linalg.norm(acquisition.affine[:3, acquisition.slice_axis]))
    out: Sidecar = {
        "BodyPart": "SPINE",
        "EchoTime": echo,
        "FlipAngle": flip,
        "MRAcquisitionType": "3D" if name in ("MP2RAGE", "T1Brain") else "2D",
        "MagneticFieldStrength": 3.0,
        "Manufacturer": "synthetic",
        "RepetitionTime": repetition,
        "SliceThickness": round(acquisition.thickness_mm, 4),
        "SpacingBetweenSlices": round(spacing, 4),
    }
    if inversion is not None:
        out["InversionTime"] = inversion
    if name == "STIR":
        out["ScanningSequence"] = "IR"
    return out
