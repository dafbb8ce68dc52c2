"""Synthetic lesions in the real scans of a session: which images, which lesions, painted, and the truth.

Everything random in a copy of a session depends on the seed, the session's label and the copy's number only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.filters import Filters
from bids_scseg.bids.masks import find_cord_masks
from bids_scseg.bids.match import match_image
from bids_scseg.bids.plan import make_plan
from bids_scseg.errors import ImageError, ScsegError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import READ_ERRORS, read_image
from bids_scseg.space.resample import sample_linear
from bids_scseg.synth.blobs import draw_blob
from bids_scseg.synth.contrast import LESION_SIGN
from bids_scseg.synth.cords import CordImage, SessionCord, borrow_mask, cord_points, measure_cord
from bids_scseg.synth.implant import Implant, Painted, draw_waves, fraction, paint_implants
from bids_scseg.synth.lesions import EXTRA_LESIONS, apart, draw_lesion_at
from bids_scseg.synth.session import near_cord, truth_lattice
from bids_scseg.synth.subject import Anatomy, Doubles, Floats, Rng, table_index, z_axis

Method = Literal["outline", "field"]
Labels = npt.NDArray[np.uint8]

#: Share of copies without any lesion (ours).
FREE_SHARE = 0.125
#: Covered cord, mm, in which a session has as many lesions beyond the first as a computed subject: about that
#: of a cervical and upper thoracic scan, where most lesions lie (ours); others in proportion.
REFERENCE_MM = 160.0
#: A voxel is cord from this share on.
SOFT_FROM = 0.5
#: Tries to find room for a lesion.
TRIES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplantSettings:
    """What is to be implanted; travels to worker processes.

    Attributes
    ----------
    seed
        Of everything random.
    copies
        Differently seeded implants of each session.
    free_share
        Share of copies without any lesion.
    method
        ``outline`` draws lesions as the computed subjects have them and adds their contrast; ``field`` draws
        them by other code (`blobs`) and scales the intensity, for tests.
    lesions
        Mean number of lesions beyond the first in 160 mm of covered cord.
    """

    seed: int
    copies: int = 1
    free_share: float = FREE_SHARE
    method: Method = "outline"
    lesions: float = EXTRA_LESIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One image of the dataset that serves, or does not.

    Attributes
    ----------
    image
        The file.
    sequence
        Its sequence; empty if it is none of the recipe's.
    mask
        Path of its own cord mask or of the one it borrows.
    lender
        Image whose mask it borrows; empty if it has its own.
    reason
        Why it is left out; empty if it is painted.
    """

    image: ImageFile
    sequence: str = ""
    mask: str = ""
    lender: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TruthFrame:
    """Where the truth of a session is written: a 0.5 mm lattice round the cord in the anchor's world.

    Attributes
    ----------
    grid
        The lattice.
    near
        Flat indices ``(n,)`` of its voxels in the cord.
    place
        Of these: foot point's height, mm to the right, mm anterior, ``(n,)`` each.
    cord
        Cord ``(i, j, k)`` uint8.
    """

    grid: Grid
    near: npt.NDArray[np.intp]
    place: tuple[Floats, Floats, Floats]
    cord: Labels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealSession:
    """A session whose images can be painted.

    Attributes
    ----------
    study
        The session.
    sources
        All its images, with what becomes of them.
    images
        Those that are painted, with their cords, in the study's order.
    cord, frame
        Their cord, and the lattice of the truth; None if no image can be painted.
    """

    study: Study
    sources: tuple[Source, ...]
    images: tuple[CordImage, ...]
    cord: SessionCord | None
    frame: TruthFrame | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Implanted:
    """One copy of a session.

    Attributes
    ----------
    copy
        Its number, from 1.
    implants
        What was put in, from the top of the cord downwards.
    painted
        By image.
    truth
        Lesion numbers ``(i, j, k)`` uint8 on the lattice of the session's `TruthFrame`.
    volume_mm3
        Of each implant in the anchor's world ``(implant,)``.
    """

    copy: int
    implants: tuple[Implant, ...]
    painted: Mapping[str, Painted]
    truth: Labels
    volume_mm3: Doubles


# --------------------------------------------------------------------------------------------------- reading


def read_real_session(
    study: Study, recipe: Recipe, *, masks: Iterable[Path], filters: Filters | None = None
) -> RealSession:
    """A session's images of the recipe's sequences, with their cords.

    Parameters
    ----------
    study
        The session.
    recipe
        Which image is which sequence.
    masks
        Derivatives folders with cord masks, the most trusted first.
    filters
        For a sequence, the entities of its files, where the matching is overruled.

    Returns
    -------
    RealSession
        An image without a mask of its own takes that of another image of the session, if that lies in view
        and on something that stands out; else it is left out.
    """
    own, _ = find_cord_masks(study, masks)
    found = [_source(image, recipe, dict(own)) for image in study.images]
    wanted = [source for source in found if not source.reason]
    loaded: dict[str, CordImage] = {}
    failed: dict[str, str] = {}
    for source in sorted(wanted, key=lambda item: not item.mask):
        try:
            loaded[source.image.relative] = _load(source)
        except ScsegError as error:
            failed[source.image.relative] = str(error)
    lent = _borrow([source for source in wanted if not source.mask], wanted, loaded)
    sources = tuple(_verdict(source, lent, failed) for source in found)
    images = tuple(loaded[s.image.relative] for s in sources if not s.reason)
    cord = _session_cord(study, recipe, sources, images)
    frame = None
    if cord is not None:
        frame = truth_frame(next(image for image in images if image.name == cord.anchor), cord)
    return RealSession(study=study, sources=sources, images=images, cord=cord, frame=frame)


def _source(image: ImageFile, recipe: Recipe, masks: Mapping[str, str]) -> Source:
    match = match_image(image, recipe)
    if match.sequence is None:
        return Source(image=image, reason=match.reason)
    if match.sequence not in LESION_SIGN:
        return Source(image=image, reason=f"no contrast of lesions is known in {match.sequence}")
    return Source(image=image, sequence=match.sequence, mask=masks.get(image.relative, ""))


def _load(source: Source) -> CordImage:
    """Intensities and cord; without a mask, an empty cord."""
    data, grid = read_image(source.image.path)
    cord = np.zeros(grid.shape, np.float32)
    if source.mask:
        cord = read_cord(Path(source.mask), grid.shape)
    thickness = grid.spacing.copy()
    stated = dict(source.image.sidecar).get("SliceThickness")
    across = int(np.argmax(thickness))
    if isinstance(stated, int | float) and 0.3 < float(stated) < thickness[across]:
        thickness[across] = float(stated)
    return CordImage(
        name=source.image.relative, sequence=source.sequence, data=data, grid=grid, cord=cord,
        thickness_mm=thickness,
    )  # fmt: skip


def read_cord(path: Path, shape: tuple[int, int, int]) -> Floats:
    """A mask's share of cord ``(i, j, k)`` float32, 0 to 1."""
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except READ_ERRORS as error:
        raise ImageError(f"cord mask cannot be read ({error})", file=path, expected="one volume") from error
    return np.clip(np.nan_to_num(data), 0, 1)


def _borrow(
    without: Sequence[Source], wanted: Sequence[Source], loaded: dict[str, CordImage]
) -> dict[str, Source]:
    """Fill in cords of images that have no mask; which source lends to which image."""
    lenders = [source for source in wanted if source.mask and source.image.relative in loaded]
    lent: dict[str, Source] = {}
    for source in without:
        target = loaded.get(source.image.relative)
        if target is None:
            continue
        # a mask of the same sequence is the likeliest to lie where this image has its cord
        for lender in sorted(lenders, key=lambda item: item.sequence != source.sequence):
            cord = borrow_mask(loaded[lender.image.relative], target)
            if cord is not None:
                loaded[source.image.relative] = replace(target, cord=cord)
                lent[source.image.relative] = lender
                break
    return lent


def _verdict(source: Source, lent: Mapping[str, Source], failed: Mapping[str, str]) -> Source:
    name = source.image.relative
    if source.reason or (source.mask and name not in failed):
        return source
    if name in failed:
        return replace(source, reason=failed[name])
    if name in lent:
        return replace(source, mask=lent[name].mask, lender=lent[name].image.name)
    return replace(source, reason="no cord mask, and none of this session that fits")


def _session_cord(
    study: Study, recipe: Recipe, sources: Sequence[Source], images: Sequence[CordImage]
) -> SessionCord | None:
    if not images:
        return None
    usable = tuple(source.image for source in sources if not source.reason)
    # all images have a cord in what is written, so masks decide nothing there, and must decide nothing here
    plan = make_plan(replace(study, images=usable), recipe)
    anchor = next(
        (sequence.files[0].relative for sequence in plan.sequences if sequence.name == plan.anchor),
        images[0].name,
    )
    return measure_cord(images, anchor)


# --------------------------------------------------------------------------------------------------- drawing


def copy_rng(settings: ImplantSettings, label: str, copy: int) -> Rng:
    """Source of randomness of one copy of a session."""
    return np.random.default_rng([settings.seed, zlib.crc32(label.encode()), copy])


def draw_implants(rng: Rng, cord: SessionCord, settings: ImplantSettings) -> tuple[Implant, ...]:
    """Lesions of one copy of a session, from the top of the cord downwards.

    Their centres are spread evenly over the covered cord. Their number is 1 plus a Poisson number in
    proportion to the covered length, fewer where there is no room; none in ``settings.free_share`` of copies.
    """
    if rng.random() < settings.free_share:
        return ()
    wanted = 1 + int(rng.poisson(settings.lesions * cord.covered_mm / REFERENCE_MM))
    heights = z_axis()[cord.covered]
    placed: list[Implant] = []
    for _ in range(wanted):
        for _ in range(TRIES):
            implant = _draw_implant(rng, cord, float(rng.choice(heights)), settings.method)
            if all(apart(implant.lesion, other.lesion) for other in placed):
                placed.append(implant)
                break
    return tuple(sorted(placed, key=lambda implant: -implant.lesion.arc_mm))


def _draw_implant(rng: Rng, cord: SessionCord, z_mm: float, method: Method) -> Implant:
    if method == "field":
        blob = draw_blob(rng, cord.anatomy, z_mm=z_mm)
        return Implant(lesion=blob, waves=np.zeros((0, 4)), multiplicative=True)
    lesion = draw_lesion_at(rng, cord.anatomy, z_mm=z_mm)
    return Implant(lesion=lesion, waves=draw_waves(rng))


def implant_session(session: RealSession, settings: ImplantSettings, copy: int) -> Implanted:
    """Draw and paint one copy of a session.

    A lesion that no image shows (the masks leave no voxel half filled by it) is taken out again.
    """
    cord, frame = session.cord, session.frame
    if cord is None or frame is None:
        raise ValueError(f"{session.study.label} has no image with a cord")
    implants = draw_implants(copy_rng(settings, session.study.label, copy), cord, settings)
    painted = _paint_all(session.images, cord, implants)
    shown = [any(np.isfinite(p.cnr[n]) and (p.lesions == n + 1).any() for p in painted.values())
             for n in range(len(implants))]  # fmt: skip
    if not all(shown):
        implants = tuple(implant for implant, there in zip(implants, shown, strict=True) if there)
        painted = _paint_all(session.images, cord, implants)
    numbers, volumes = _truth(frame, cord.anatomy, implants)
    return Implanted(copy=copy, implants=implants, painted=painted, truth=numbers, volume_mm3=volumes)


def _paint_all(
    images: Sequence[CordImage], cord: SessionCord, implants: tuple[Implant, ...]
) -> dict[str, Painted]:
    return {image.name: paint_implants(image, cord.anatomies[image.name], implants) for image in images}


def _truth(frame: TruthFrame, anatomy: Anatomy, implants: tuple[Implant, ...]) -> tuple[Labels, Doubles]:
    """Lesion numbers on the truth's lattice, and volumes in mm3."""
    numbers, volumes = np.zeros(frame.grid.shape, np.uint8), np.zeros(len(implants))
    foot, u, v = frame.place
    for n, implant in enumerate(implants):
        lesion = implant.lesion
        some = np.flatnonzero(np.abs(foot - lesion.z_mm) < lesion.length_mm / 2 + 4)
        part = fraction(anatomy, lesion, (foot[some], u[some], v[some]))
        volumes[n] = float(part.sum(dtype=float)) * frame.grid.voxel_volume
        numbers.reshape(-1)[frame.near[some[part >= 0.5]]] = n + 1
    return numbers, volumes


def truth_frame(anchor: CordImage, cord: SessionCord) -> TruthFrame:
    """The 0.5 mm lattice round a session's cord.

    The cord is that of the anchor's mask where that reaches, the ellipse of its half axes elsewhere.
    """
    anatomy = cord.anatomy
    heights = z_axis()[cord.covered]
    shape, affine = truth_lattice(anatomy, low=float(heights.min()), high=float(heights.max()))
    grid = Grid(shape=shape, affine=affine)
    near = near_cord(anatomy, shape, affine)
    world = grid.to_world(np.stack(np.unravel_index(near, shape), axis=1))
    foot, u, v = cord_points(anatomy, world)
    at = table_index(foot)
    ellipse = np.hypot(u / anatomy.profiles.cord_rl[at], v / anatomy.profiles.cord_ap[at]) < 1
    drawn = sample_linear(anchor.cord, anchor.grid.to_index(world)) >= SOFT_FROM
    rows = np.unravel_index(near, shape)[2]
    reached = np.bincount(rows, drawn, minlength=shape[2]) > 0
    inside = np.where(reached[rows], drawn, ellipse & cord.covered[at])
    mask = np.zeros(shape, np.uint8)
    mask.reshape(-1)[near[inside]] = 1
    return TruthFrame(grid=grid, near=near[inside], place=(foot[inside], u[inside], v[inside]), cord=mask)
