"""Scans and truth of one session, written as BIDS files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.synth.contrast import FAINT_CNR, LESION_SIGN, SEQUENCES, VISIBLE_CNR, draw_intensities
from bids_scseg.synth.fields import smooth_noise
from bids_scseg.synth.files import write_json, write_nifti, write_tsv
from bids_scseg.synth.lesions import Lesion, fraction_at, volume_mm3
from bids_scseg.synth.painting import canal_front
from bids_scseg.synth.protocol import Scan, plan_session
from bids_scseg.synth.scanner import Acquisition, Image, develop, expose
from bids_scseg.synth.scenario import Scenario
from bids_scseg.synth.subject import (
    FORAMEN_MM,
    STEP_MM,
    VERTEBRAE,
    Anatomy,
    Doubles,
    Floats,
    Rng,
    centerline_world,
    level_of,
    project,
    table_index,
    to_world,
    z_axis,
)
from bids_scseg.synth.tissues import Tissue

#: Edge of the voxels of the truth lattice, mm: the prepared grid's.
TRUTH_MM = 0.5
#: Heights between which the truth lattice lies, mm from the C2-C3 disc: the whole cord.
TRUTH_RANGE_MM = (-460.0, FORAMEN_MM + 5)
#: Half width of the box round the cord that the truth lattice fills, mm.
TRUTH_HALF_MM = 9.5
#: Relative change of vessels after contrast agent, and of all tissues by magnetisation transfer.
GADOLINIUM_VESSEL = 1.1
MT_FACTOR = {Tissue.MUSCLE: 0.55, Tissue.CORD_WHITE: 0.62, Tissue.CORD_GREY: 0.68, Tissue.BRAINSTEM: 0.63}

#: Columns of the truth table; class and realised contrast-to-noise by sequence follow.
LESION_COLUMNS = (
    "index", "name", "volume_mm3", "arc_mm", "z_mm", "level", "length_mm", "area_mm2", "column",
    "grey_matter",
)  # fmt: skip
TRUTH_COLUMNS = (
    *LESION_COLUMNS,
    *(f"class_{name}" for name in SEQUENCES),
    *(f"cnr_{name}" for name in SEQUENCES),
    *(f"realised_{name}" for name in SEQUENCES),
)
_COLUMN_TEXT = {
    "index": "number of the lesion, the value in the image",
    "name": "name of the lesion",
    "volume_mm3": "volume of the lesion in mm3",
    "arc_mm": "arc length from the C2-C3 disc along the cord to the lesion's centre, mm, positive upwards",
    "z_mm": "height of the lesion's centre in the subject's own space, mm from the C2-C3 disc",
    "level": "vertebra at the lesion's centre",
    "length_mm": "extent along the cord, mm of arc length",
    "area_mm2": "cross-section at the lesion's centre, mm2",
    "column": "column of the cord at the lesion's centre",
    "grey_matter": "whether the lesion reaches the grey matter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a session's files go: dataset root, subject label and session label (None without sessions)."""

    root: Path
    subject: str
    session: str | None = None

    @property
    def prefix(self) -> str:
        """Start of every file name."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def folder(self) -> str:
        """Folder of the images relative to a dataset's root."""
        return f"sub-{self.subject}/" + (f"ses-{self.session}/" if self.session else "") + "anat"

    @property
    def labels(self) -> Path:
        """Folder of the truth."""
        return self.root / "derivatives" / "labels" / self.folder


def write_session(
    place: Place, rng: Rng, *, anatomy: Anatomy, lesions: tuple[Lesion, ...], scenario: Scenario
) -> None:
    """Scan a subject by a scenario and write images and truth.

    Parameters
    ----------
    place
        Where to write.
    rng
        Source of everything random in the session.
    anatomy, lesions
        The subject.
    scenario
        What the session has.
    """
    realised = Realised()
    for scan, image in scan_session(rng, anatomy=anatomy, lesions=lesions, scenario=scenario):
        _write_scan(place, scan, image, anatomy=anatomy, lesion_count=len(lesions))
        realised.add(scan, image)
    _write_truth(place, anatomy, lesions, realised=realised.cnr)


def scan_session(
    rng: Rng, *, anatomy: Anatomy, lesions: tuple[Lesion, ...], scenario: Scenario
) -> Iterator[tuple[Scan, Image]]:
    """The scans of a session with their images, one after another; see :func:`write_session`."""
    contrasts: dict[str, Floats] = {}
    for scan in plan_session(rng, anatomy, scenario):
        key = scan.acquisition.sequence
        if key not in contrasts:
            contrasts[key] = draw_intensities(rng, key)
        yield scan, _scan(scan, rng, anatomy=anatomy, lesions=lesions, means=contrasts[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """Measured contrasts of a session.

    Attributes
    ----------
    cnr
        By sequence: contrast-to-noise ratio of each lesion ``(lesion,)`` in the slab that shows most of it;
        NaN where no slab covers it.
    voxels
        By sequence: voxels of each lesion in that slab ``(lesion,)``.
    """

    cnr: dict[str, Doubles] = field(default_factory=dict)
    voxels: dict[str, npt.NDArray[np.intp]] = field(default_factory=dict)

    def add(self, scan: Scan, image: Image) -> None:
        """Take in one image; images that are no sequence of the recipe are passed over."""
        if not scan.sequence:
            return
        count = np.array([int((image.lesions == n + 1).sum()) for n in range(image.cnr.size)])
        if scan.sequence not in self.cnr:
            self.cnr[scan.sequence], self.voxels[scan.sequence] = image.cnr.copy(), count
            return
        cnr, voxels = self.cnr[scan.sequence], self.voxels[scan.sequence]
        better = np.isfinite(image.cnr) & ((count > voxels) | ~np.isfinite(cnr))
        cnr[better], voxels[better] = image.cnr[better], count[better]

    def showing(self, lesion: int, degree: str) -> tuple[str, ...]:
        """Sequences in which lesion number ``lesion`` (from 1) is ``visible``, ``faint`` or ``invisible``."""
        return tuple(name for name, cnr in self.cnr.items() if realised_class(cnr[lesion - 1]) == degree)


def _scan(scan: Scan, rng: Rng, *, anatomy: Anatomy, lesions: tuple[Lesion, ...], means: Floats) -> Image:
    key = scan.acquisition.sequence
    means = means.copy()
    if scan.contrast == "gadolinium":
        means[Tissue.VESSEL] = GADOLINIUM_VESSEL
        means[Tissue.GLAND] *= 1.5
    if scan.contrast == "mt-on":
        for tissue, factor in MT_FACTOR.items():
            means[tissue] *= factor
    exposure = expose(anatomy, scan.acquisition, intensities=means, lesions=lesions)
    wanted = [lesion.cnr.get(key, 0.0) for lesion in lesions]
    image = develop(exposure, scan.acquisition, rng, sign=LESION_SIGN.get(key, 1), cnr=wanted)
    if scan.contrast == "phase":
        image = _as_phase(image, rng)
    return image


def _as_phase(image: Image, rng: Rng) -> Image:
    """A phase image in scanner units (0-4095) in place of the magnitude: smooth wraps, noise in air."""
    shape = image.data.shape
    smooth = 3.0 * smooth_noise(shape, rng, period_vox=tuple(n / 3 for n in shape))
    noise = 120.0 / np.maximum(image.data.astype(np.float32), 30.0)
    phase = np.mod(smooth + noise * rng.standard_normal(shape, np.float32), 2 * np.pi)
    data = np.rint(phase / (2 * np.pi) * 4095).astype(np.int16)
    return Image(
        data=data, cord=image.cord, lesions=image.lesions, lesion_share=image.lesion_share, cnr=image.cnr
    )


# --------------------------------------------------------------------------------------------------- writing


def _write_scan(place: Place, scan: Scan, image: Image, *, anatomy: Anatomy, lesion_count: int) -> None:
    entities = "".join(f"_{key}-{scan.entities[key]}" for key in _ordered(scan.entities))
    name = f"{place.prefix}{entities}_{scan.suffix}"
    folder = place.root / place.folder
    write_nifti(folder / f"{name}.nii.gz", image.data, scan.acquisition.affine)
    write_json(folder / f"{name}.json", scan.sidecar)
    if not scan.sequence:
        return
    base, source = place.labels / f"{place.prefix}{entities}", f"bids:raw:{place.folder}/{name}.nii.gz"
    _write_masks(base, source, scan.acquisition, image, lesion_count=lesion_count)
    if scan.suffix in ("T2w", "T1w") and scan.acquisition.slice_axis == _right_axis(scan.acquisition):
        _write_discs(base, source, anatomy, scan.acquisition)


def _ordered(entities: dict[str, str]) -> list[str]:
    order = ("acq", "ce", "run", "mt", "part", "chunk")
    return [key for key in order if key in entities]


def _right_axis(acquisition: Acquisition) -> int:
    return int(np.argmax(np.abs(acquisition.affine[0, :3])))


def _write_masks(
    base: Path, source: str, acquisition: Acquisition, image: Image, *, lesion_count: int
) -> None:
    """Cord mask, lesion mask and lesion instances on the image's own lattice."""
    affine = acquisition.affine
    motion = [[round(float(value), 6) for value in row] for row in acquisition.motion]
    sources = {"Sources": [source]}
    cord, mask, instances = (
        _with(base, end) for end in ("_label-SC_mask", "_label-lesion_mask", "_seg-lesions_dseg")
    )
    write_nifti(cord.with_suffix(".nii.gz"), image.cord.astype(np.uint8), affine)
    write_json(
        cord.with_suffix(".json"),
        sources | {"Type": "ROI", "Manual": False, "SubjectMotion": motion},
    )
    write_nifti(mask.with_suffix(".nii.gz"), (image.lesions > 0).astype(np.uint8), affine)
    write_json(mask.with_suffix(".json"), sources | {"Type": "Lesion", "Manual": False})
    write_nifti(instances.with_suffix(".nii.gz"), image.lesions, affine)
    write_json(instances.with_suffix(".json"), sources | {"Manual": False})
    rows: list[dict[str, object]] = [{"index": n, "name": f"lesion {n}"} for n in range(1, lesion_count + 1)]
    write_tsv(instances.with_suffix(".tsv"), ("index", "name"), rows)


def _with(base: Path, end: str) -> Path:
    return base.with_name(base.name + end)


def disc_points(anatomy: Anatomy) -> dict[int, tuple[str, Doubles]]:
    """World position (mm) of each disc's hind edge, by the number of the vertebra below (C3 = 3, T1 = 8)."""
    out = {}
    for name, z in anatomy.disc_z.items():
        number = VERTEBRAE.index(name.split("-")[1]) + 1
        out[number] = (name, to_world(anatomy, canal_front(anatomy.profiles, z)[None])[0])
    return out


def _write_discs(base: Path, source: str, anatomy: Anatomy, acquisition: Acquisition) -> None:
    """Discs as single voxels; the value is the number of the vertebra below (3 = C2-C3)."""
    data = np.zeros(acquisition.shape, np.uint8)
    to_index = np.linalg.inv(acquisition.motion @ acquisition.affine)
    rows: list[dict[str, object]] = []
    for number, (name, point) in disc_points(anatomy).items():
        index = np.rint(to_index[:3, :3] @ point + to_index[:3, 3]).astype(int)
        if np.all(index >= 0) and np.all(index < acquisition.shape):
            data[tuple(index)] = number
            rows.append({"index": number, "name": name})
    path = _with(base, "_seg-discs_dseg")
    write_nifti(path.with_suffix(".nii.gz"), data, acquisition.affine)
    write_json(path.with_suffix(".json"), {"Sources": [source], "Manual": False})
    write_tsv(path.with_suffix(".tsv"), ("index", "name"), rows)


# ----------------------------------------------------------------------------------------------------- truth


def truth_lattice(anatomy: Anatomy, *, low: float, high: float) -> tuple[tuple[int, int, int], Doubles]:
    """Shape and affine of the 0.5 mm lattice round the cord between two heights; axes towards R, A, S."""
    points = centerline_world(anatomy, np.linspace(low, high, 60))
    margin = np.array([TRUTH_HALF_MM, TRUTH_HALF_MM, 2.0])
    start, stop = np.floor(points.min(0) - margin), np.ceil(points.max(0) + margin)
    affine = np.diag([TRUTH_MM, TRUTH_MM, TRUTH_MM, 1.0])
    affine[:3, 3] = start
    shape = np.rint((stop - start) / TRUTH_MM).astype(int)
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def truth_maps(
    anatomy: Anatomy, lesions: tuple[Lesion, ...], *, shape: tuple[int, int, int], affine: Doubles
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Cord (0, 1) and lesion numbers at the voxel centres of a lattice, ``(i, j, k)`` uint8 each.

    The lattice is in the world at reference time, i.e. of the anchor's first slab. Only points within
    `TRUTH_HALF_MM` of the cord's centre in their plane are looked at.
    """
    cord, numbers = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    near = near_cord(anatomy, shape, affine)
    turn = anatomy.rotation.T
    ijk = np.stack(np.unravel_index(near, shape)).astype(np.float32)
    start = turn @ (affine[:3, 3] - anatomy.offset)
    xyz = (turn @ affine[:3, :3]).astype(np.float32) @ ijk + start.astype(np.float32)[:, None]
    foot, u, v = project(anatomy.profiles, xyz)
    at = table_index(foot)
    rho = (u / anatomy.profiles.cord_rl[at]) ** 2 + (v / anatomy.profiles.cord_ap[at]) ** 2
    inside = np.flatnonzero((rho < 1) & (foot > anatomy.conus_z) & (foot < FORAMEN_MM))
    near, foot, u, v = near[inside], foot[inside], u[inside], v[inside]
    cord.reshape(-1)[near] = 1
    for number, lesion in enumerate(lesions, start=1):
        some = np.flatnonzero(np.abs(foot - lesion.z_mm) < lesion.length_mm / 2 + 2)
        part = fraction_at(anatomy, lesion, foot=foot[some], u=u[some], v=v[some])
        numbers.reshape(-1)[near[some[part >= 0.5]]] = number
    return cord, numbers


def near_cord(anatomy: Anatomy, shape: tuple[int, int, int], affine: Doubles) -> npt.NDArray[np.intp]:
    """Flat indices of voxels within the box round the centerline in each k-plane (axis-parallel lattices)."""
    line = centerline_world(anatomy, z_axis())
    z = affine[2, 3] + affine[2, 2] * np.arange(shape[2])
    masks = []
    for axis, half in enumerate((anatomy.profiles.cord_rl, anatomy.profiles.cord_ap)):
        middle = np.interp(z, line[:, 2], line[:, axis])
        # the widest cord within 5 mm, seen obliquely (its slope stays under 0.9), with a margin
        widest = ndimage.maximum_filter1d(half.astype(float), round(10 / STEP_MM) + 1)
        reach = np.minimum(1.35 * np.interp(z, line[:, 2], widest) + 1, TRUTH_HALF_MM)
        place = affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis])
        masks.append(np.abs(place[:, None] - middle) < reach)
    return np.flatnonzero(masks[0][:, None, :] & masks[1][None, :, :])


def realised_class(cnr: float) -> str:
    """Detectability class of a measured contrast-to-noise ratio; empty where it is undefined."""
    if not np.isfinite(cnr):
        return ""
    return "visible" if cnr >= VISIBLE_CNR else ("faint" if cnr >= FAINT_CNR else "invisible")


def _truth_row(
    anatomy: Anatomy, lesion: Lesion, number: int, *, realised: dict[str, Doubles]
) -> dict[str, object]:
    row: dict[str, object] = {
        "index": number,
        "name": f"lesion {number}",
        "volume_mm3": volume_mm3(anatomy, lesion),
        "arc_mm": lesion.arc_mm,
        "z_mm": lesion.z_mm,
        "level": level_of(anatomy, lesion.z_mm),
        "length_mm": lesion.length_mm,
        "area_mm2": lesion.area_mm2,
        "column": lesion.column,
        "grey_matter": "yes" if lesion.grey else "no",
    }
    for name, values in realised.items():
        cnr = float(values[number - 1])
        row[f"class_{name}"] = lesion.detectability[name] if np.isfinite(cnr) else ""
        row[f"cnr_{name}"] = cnr
        row[f"realised_{name}"] = realised_class(cnr)
    return row


def _write_truth(
    place: Place,
    anatomy: Anatomy,
    lesions: tuple[Lesion, ...],
    *,
    realised: dict[str, Doubles],
) -> None:
    """Cord and lesions at 0.5 mm in the world at reference time, with the table of the lesions."""
    low, high = TRUTH_RANGE_MM
    shape, affine = truth_lattice(anatomy, low=low, high=high)
    cord, numbers = truth_maps(anatomy, lesions, shape=shape, affine=affine)
    resolution = {
        "Resolution": f"{TRUTH_MM} mm isotropic, in the subject's position at the anchor's first scan"
    }
    base = place.labels / place.prefix
    path = _with(base, "_res-iso_label-SC_desc-truth_mask")
    write_nifti(path.with_suffix(".nii.gz"), cord, affine)
    write_json(path.with_suffix(".json"), resolution | {"Type": "ROI", "Manual": False})
    path = _with(base, "_seg-lesions_res-iso_desc-truth_dseg")
    write_nifti(path.with_suffix(".nii.gz"), numbers, affine)
    rows = [
        _truth_row(anatomy, lesion, number, realised=realised)
        for number, lesion in enumerate(lesions, start=1)
    ]
    write_tsv(path.with_suffix(".tsv"), TRUTH_COLUMNS, rows)
    write_json(path.with_suffix(".json"), resolution | {"Manual": False} | truth_texts())


def truth_texts(*, origin: str = "the C2-C3 disc") -> dict[str, dict[str, str]]:
    """Description of each column of the truth table; positions along the cord count from ``origin``."""
    texts = {name: text.replace("the C2-C3 disc", origin) for name, text in _COLUMN_TEXT.items()}
    for name in SEQUENCES:
        texts[f"class_{name}"] = f"detectability drawn for {name}"
        texts[f"cnr_{name}"] = (
            f"contrast-to-noise ratio measured in {name}, positive in the expected direction"
        )
        texts[f"realised_{name}"] = f"class of the measured ratio in {name}: visible from 2, faint from 0.7"
    return {name: {"Description": text} for name, text in texts.items()}
