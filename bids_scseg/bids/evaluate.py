"""Evaluation of folders: pairs are read, brought onto the lattice of the reference mask, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bids_scseg import files
from bids_scseg.bids.derivatives import CORRECTION_KEY
from bids_scseg.bids.names import sidecar
from bids_scseg.bids.pairs import (
    MaskFile,
    Pair,
    Pairing,
    Unpaired,
    choose_space,
    find_masks,
    find_pairs,
    find_probabilities,
    lesion_places,
    probability_of,
    read_participants,
)
from bids_scseg.bids.references import lesion_numbers
from bids_scseg.bids.split import Selection, select
from bids_scseg.bids.trained import Training, training_of
from bids_scseg.errors import (
    DataError,
    GeometryError,
    ImageError,
    MissingInputError,
    NoMatchError,
    ScsegError,
    UsageError,
)
from bids_scseg.measure.calibration import ROUNDING
from bids_scseg.measure.evaluate import ImageKey, ImageResult, LesionNames, evaluate_image
from bids_scseg.measure.evaluation import NO_VALUE, Evaluation, evaluate_all, group_labels
from bids_scseg.measure.overlap import find_profile
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import READ_ERRORS, inspect_header
from bids_scseg.space.resample import CHUNK_POINTS, broadcast_affine

#: Corners closer than this are the same lattice up to rounding in the header, mm (ours).
SAME_GRID_MM = 0.01
#: Two fields of view of which the smaller lies to less than this share in the other are not of one world, or
#: not of one scan: a header was lost, or files were mixed up (ours).
MIN_SHARED_VIEW = 0.5
#: A mask that marks more of the image than this is no lesion mask (ours; lesions take less than 1 %).
MAX_MARKED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to evaluate.

    Attributes
    ----------
    predictions
        Method → folder of its masks.
    truth
        Folder of reference masks.
    profile
        Name of the rules.
    probabilities
        Method → folder of its probability maps; without one, maps beside the masks are used.
    participants
        Table of cohort columns; None: ``participants.tsv`` of the truth or of the dataset that it is part of.
    by
        Cohort columns.
    baseline
        Method to compare with.
    space
        Space of the reference masks; None: native where there are such.
    truth_files, pred_files
        Shell patterns that select files.
    subjects
        Labels of the subjects to evaluate, with or without prefix; empty: all.
    split, side
        A training's split and the side whose subjects are evaluated (:func:`bids_scseg.bids.split.select`).
    seed
        Of the bootstrap.
    """

    predictions: Mapping[str, Path]
    truth: Path
    profile: str
    probabilities: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    participants: Path | None = None
    by: tuple[str, ...] = ()
    baseline: str | None = None
    space: str | None = None
    truth_files: str | None = None
    pred_files: str | None = None
    subjects: tuple[str, ...] = ()
    split: Path | None = None
    side: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFacts:
    """How one pair was read.

    Attributes
    ----------
    prediction
        Method.
    pair
        The files.
    spacing_mm, shape
        Of the reference mask.
    resampled
        Whether the prediction came from another lattice, by the nearest voxel.
    truth_outside_mm3
        Volume of true lesions outside the prediction's field of view; it counts as not found.
    probability
        Relative path of the probability map; empty without.
    unusable_map
        What was wrong with the map that was found; empty where nothing was. The masks count all the same.
    """

    prediction: str
    pair: Pair
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    resampled: bool
    truth_outside_mm3: float
    probability: str
    unusable_map: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderEvaluation:
    """An evaluation with the files it rests on.

    Attributes
    ----------
    request
        What was asked.
    evaluation
        The numbers.
    facts
        One for each image result, in the same order.
    unpaired
        Method → files that take no part.
    selection
        Which subjects were asked for.
    drawn
        All subjects with reference masks, asked for or not.
    trainings
        Method → what is known of its model's training.
    """

    request: Request
    evaluation: Evaluation
    facts: tuple[PairFacts, ...]
    unpaired: Mapping[str, tuple[Unpaired, ...]]
    selection: Selection
    drawn: tuple[str, ...]
    trainings: Mapping[str, Training]

    def evaluated(self, prediction: str) -> tuple[str, ...]:
        """Subjects of whom at least one image of a method was compared, sorted."""
        keys = [result.key for result in self.evaluation.results]
        return tuple(sorted({key.subject for key in keys if key.prediction == prediction}))


def evaluate_folders(request: Request, *, progress: Callable[[], None] = lambda: None) -> FolderEvaluation:
    """Find, read and compare all pairs.

    Parameters
    ----------
    request
        What to evaluate.
    progress
        Called after every pair.

    Returns
    -------
    FolderEvaluation; pairs that cannot be compared are listed as refused.

    Raises
    ------
    UsageError
        If a name of the request belongs to no prediction, or see :func:`bids_scseg.bids.split.select`.
    MissingInputError, DataError
        If a folder, table or split is absent or unusable, or there is no such profile.
    NoMatchError
        If no subject or no pair is left.
    """
    _check(request)
    selection = select(request.subjects, request.split, request.side)
    everybody = find_masks(request.truth, pattern=request.truth_files)
    drawn = _selected(everybody, selection, folder=request.truth)
    space = choose_space(drawn, request.space)
    truths = tuple(item for item in drawn if item.space == space)
    elsewhere = tuple(_elsewhere(drawn, space))
    cohort = _cohort(request, truths)
    results: list[tuple[ImageResult, PairFacts]] = []
    unpaired: dict[str, tuple[Unpaired, ...]] = {}
    trainings: dict[str, Training] = {}
    for name, folder in request.predictions.items():
        made = find_masks(folder, pattern=request.pred_files)
        pairing = find_pairs(truths, [item for item in made if selection.holds(item.subject)])
        maps = _maps(request, name)
        found, refused = _evaluate_pairs(request, name, pairing, maps=maps, cohort=cohort, progress=progress)
        results += found
        unpaired[name] = (*pairing.unpaired, *refused, *elsewhere)
        compared = [facts.pair.prediction.path for _, facts in found]
        trainings[name] = training_of(folder, compared, selection)
        if not found:
            raise NoMatchError(
                f"none of {len(truths)} reference masks ({space}) can be compared with {name!r}: "
                f"{_counts(unpaired[name])}",
                file=folder,
                expected="the same file names, or BIDS names with the same entities",
                remedy=refused[-1].reason if refused else "select files with --truth-files, --pred-files",
            )
    evaluation = evaluate_all(
        [result for result, _ in results],
        space=space,
        baseline=request.baseline,
        by=request.by,
        seed=request.seed,
    )
    return FolderEvaluation(
        request=request,
        evaluation=evaluation,
        facts=tuple(facts for _, facts in results),
        unpaired=unpaired,
        selection=selection,
        drawn=tuple(sorted({item.subject for item in everybody})),
        trainings=trainings,
    )


def _selected(everybody: Sequence[MaskFile], selection: Selection, *, folder: Path) -> tuple[MaskFile, ...]:
    """Reference masks of the subjects that are evaluated (NoMatchError if there is none)."""
    kept = tuple(item for item in everybody if selection.holds(item.subject))
    if not kept:
        wanted = [f"sub-{label}" for label in sorted(selection.subjects or ())]
        raise NoMatchError(
            f"no reference mask of the {len(wanted)} subjects asked for ({_some(wanted)})",
            file=folder,
            expected=f"some of {_some(sorted({item.subject for item in everybody}))}",
            remedy="name the folder of these subjects with --truth, or others with --participant-label",
        )
    return kept


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")


def _check(request: Request) -> None:
    """Names before anything is read."""
    find_profile(request.profile)
    names = ", ".join(request.predictions)
    strangers = [name for name in request.probabilities if name not in request.predictions]
    if request.baseline is not None and request.baseline not in request.predictions:
        strangers.append(request.baseline)
    if strangers:
        raise UsageError(f"no prediction is named {strangers[0]!r}", expected=f"one of {names}")


def _elsewhere(drawn: Sequence[MaskFile], space: str) -> Iterable[Unpaired]:
    """Reference masks of other spaces; somebody may have no other."""
    here = {item.subject for item in drawn if item.space == space}
    for item in drawn:
        if item.space != space:
            alone = "" if item.subject in here else f"; {item.subject} has none in {space} space"
            yield Unpaired(
                side="truth", file=item.relative, state="elsewhere",
                reason=f"lies in {item.space} space, the evaluation in {space}{alone}",
            )  # fmt: skip


def _counts(unpaired: Sequence[Unpaired]) -> str:
    states = [f"{item.side}s {item.state}" for item in unpaired]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _cohort(request: Request, truths: Sequence[MaskFile]) -> dict[str, dict[str, str]]:
    """Subject → column → group; every subject of the truth has every column."""
    subjects = sorted({item.subject for item in truths})
    if not request.by:
        return {subject: {} for subject in subjects}
    table = read_participants(_participants_table(request), request.by)
    groups = {
        column: group_labels({subject: values.get(subject) for subject in subjects})
        for column, values in table.items()
    }
    return {
        subject: {column: labels.get(subject, NO_VALUE) for column, labels in groups.items()}
        for subject in subjects
    }


def _participants_table(request: Request) -> Path:
    if request.participants is not None:
        return request.participants
    root = request.truth.absolute()
    for folder in (root, root.parent.parent, *request.predictions.values()):
        if (folder / "participants.tsv").is_file():
            return folder / "participants.tsv"
    raise MissingInputError(
        "no participants.tsv there or in the dataset above",
        file=request.truth,
        remedy="name the table with --participants",
    )


def _maps(request: Request, name: str) -> tuple[MaskFile, ...]:
    if name in request.probabilities:
        return find_probabilities(request.probabilities[name], only_named=False)
    return find_probabilities(request.predictions[name])


def _evaluate_pairs(
    request: Request,
    name: str,
    pairing: Pairing,
    *,
    maps: Sequence[MaskFile],
    cohort: Mapping[str, Mapping[str, str]],
    progress: Callable[[], None],
) -> tuple[list[tuple[ImageResult, PairFacts]], list[Unpaired]]:
    found: list[tuple[ImageResult, PairFacts]] = []
    refused: list[Unpaired] = []
    for pair in pairing.pairs:
        key = ImageKey(
            prediction=name,
            image=pair.truth.relative,
            subject=pair.truth.subject,
            groups=cohort[pair.truth.subject],
        )
        try:
            found.append(evaluate_pair(pair, key=key, profile=request.profile, maps=maps))
        except ScsegError as error:
            refused += _refused(pair, error)
        progress()
    return found, refused


def _refused(pair: Pair, error: ScsegError) -> Iterable[Unpaired]:
    yield Unpaired(side="truth", file=pair.truth.relative, state="refused", reason=str(error))
    yield Unpaired(side="prediction", file=pair.prediction.relative, state="refused", reason=str(error))


def _refuse_corrected(prediction: MaskFile) -> None:
    """A reader's word, perhaps the very reference, must not be counted as the model's."""
    try:
        said = files.read_json(prediction.path.with_name(sidecar(prediction.path.name)))
    except DataError:
        return  # no sidecar, or not ours
    if isinstance(said, dict) and CORRECTION_KEY in said:
        raise DataError(
            "a reader corrected this result: it says nothing of the model",
            file=prediction.path,
            expected="a result of the model alone",
            remedy="run the participant level into another folder, without the corrected masks",
        )


def evaluate_pair(
    pair: Pair, *, key: ImageKey, profile: str, maps: Sequence[MaskFile] = ()
) -> tuple[ImageResult, PairFacts]:
    """Read and compare one pair on the lattice of its reference mask.

    Parameters
    ----------
    pair
        The files.
    key
        Whose they are.
    profile
        Name of the rules.
    maps
        Probability maps of the method, from which that of this image is taken.

    Raises
    ------
    ImageError, DataError
        If a file cannot be read or is no mask, or the prediction is what a reader made of the model's.
    GeometryError
        If the two do not lie in one world.
    """
    _refuse_corrected(pair.prediction)
    truth, grid = read_mask(pair.truth.path, drawn=True)
    prediction, inside, resampled = _onto(pair.prediction.path, read_mask, grid)
    chosen = probability_of(pair.prediction, maps)
    probability, covered, problem = None, inside, ""
    if chosen is not None:
        try:
            probability, covered, _ = _onto(chosen.path, read_probability, grid)
        except ScsegError as error:
            problem = f"{chosen.relative}: {error.found}"
            chosen = None
    result = evaluate_image(
        truth,
        prediction,
        grid=grid,
        profile=profile,
        key=key,
        probability=probability,
        inside=covered,
        truth_names=_names(pair.truth, grid),
        predicted_names=_names(pair.prediction, grid),
    )
    return result, PairFacts(
        prediction=key.prediction,
        pair=pair,
        spacing_mm=tuple(float(step) for step in grid.spacing),
        shape=grid.shape,
        resampled=resampled,
        truth_outside_mm3=float((truth & ~inside).sum() * grid.voxel_volume),
        probability="" if chosen is None else chosen.relative,
        unusable_map=problem,
    )


def _onto(
    path: Path, read: Callable[[Path], tuple[npt.NDArray[Any], Grid]], grid: Grid
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], bool]:
    """An image on another lattice: (values, where it covers that lattice, whether it was resampled)."""
    data, own = read(path)
    if same_grid(own, grid):
        return data, np.ones(grid.shape, bool), False
    values, inside = resample_nearest(data, own, onto=grid)
    smaller = min(np.prod(own.shape) * own.voxel_volume, np.prod(grid.shape) * grid.voxel_volume)
    share = float(inside.sum() * grid.voxel_volume / smaller)
    if share < MIN_SHARED_VIEW:
        raise GeometryError(
            f"shares {share:.0%} of its field of view with the reference mask",
            file=path,
            expected=f"{MIN_SHARED_VIEW:.0%} or more: both in one world",
            remedy="check the orientation in both headers, and that the files belong together",
        )
    return values, inside, True


def _names(mask: MaskFile, grid: Grid) -> LesionNames | None:
    """Level and column of lesions; None where no table tells or its label image cannot be used."""
    found = lesion_places(mask)
    if found is None:
        return None
    path, places = found
    try:
        labels, _, _ = _onto(path, _read_labels, grid)
    except (ImageError, GeometryError, DataError):
        return None
    return LesionNames(labels=labels, places=places)


def same_grid(one: Grid, two: Grid) -> bool:
    """Whether lattices agree up to rounding in their headers."""
    if one.shape != two.shape:
        return False
    return bool(np.abs(one.corners() - two.corners()).max() < SAME_GRID_MM)


def resample_nearest(
    volume: npt.NDArray[Any], grid: Grid, *, onto: Grid
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Values of the nearest voxel, through both affines.

    Parameters
    ----------
    volume : (i, j, k)
        Any type.
    grid
        Its lattice.
    onto
        The lattice wanted.

    Returns
    -------
    values : shape of ``onto``
        0 outside.
    inside : the same shape, bool
        Whether the voxel's centre lies in a voxel of ``grid``.
    """
    nearest = _nearest(grid, onto)
    inside = nearest >= 0
    values = np.zeros(onto.shape, volume.dtype)
    values[inside] = volume.ravel()[nearest[inside]]
    return values, inside


@lru_cache(maxsize=1)  # mask, instances and probability of one image come from one lattice to one other
def _nearest(grid: Grid, onto: Grid) -> npt.NDArray[np.int64]:
    """Flat index of the voxel of ``grid`` that holds the centre of each voxel of ``onto``; -1 for none."""
    found = np.empty(onto.shape, np.int64)
    matrix = np.linalg.inv(grid.affine) @ onto.affine
    step = max(1, CHUNK_POINTS // (onto.shape[0] * onto.shape[1]))
    for start in range(0, onto.shape[2], step):
        size = (onto.shape[0], onto.shape[1], min(step, onto.shape[2] - start))
        points = broadcast_affine(matrix, size, np.array([0.0, 0.0, float(start)]))
        flat, there = np.zeros(size, np.int64), np.ones(size, bool)
        for point, count in zip(points, grid.shape, strict=True):
            # Rounding noise of the affines must not send a centre to the voxel before.
            index = np.floor(point + 0.5 + 1e-6).astype(np.int64)
            there &= (index >= 0) & (index < count)
            flat = flat * count + index
        found[:, :, start : start + size[2]] = np.where(there, flat, -1)
    return found


def read_mask(path: Path, *, drawn: bool = False) -> tuple[npt.NDArray[np.bool_], Grid]:
    """Read a lesion mask: nonzero is lesion; of a soft mask (0 to 1), values from 0.5 on.

    Parameters
    ----------
    path
        NIfTI file.
    drawn
        Whether it is a reference: one that says something and nowhere reaches one half would count as free of
        lesions, and is refused.

    Returns
    -------
    (i, j, k) bool and its lattice; an empty mask is fine.

    Raises
    ------
    ImageError, MissingInputError
        If it cannot be read, has negative values or some that are not finite, or marks more than half of the
        image.
    DataError
        If its values are neither numbers of lesions nor shares of lesion, or see `drawn`.
    """
    data, grid = _read(path)
    if data.min() < 0:
        raise ImageError(
            f"values down to {data.min():g}", file=path, expected="a mask without negative values"
        )
    mask = lesion_numbers(data, file=path) > 0
    if drawn and data.any() and not mask.any():
        raise DataError(
            f"a soft mask whose largest value is {data.max():.2g}: nothing of it would be lesion",
            file=path,
            expected="a half or more where lesion is",
            remedy="cut it where lesions begin and save it as 0 and 1; without lesions, as 0 alone",
        )
    if mask.mean() > MAX_MARKED:
        raise ImageError(
            f"{mask.mean():.0%} of the voxels are marked",
            file=path,
            expected="a lesion mask",
            remedy="select masks with --truth-files or --pred-files",
        )
    return mask, grid


def read_probability(path: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """Read a probability map, 0–1.

    Raises
    ------
    ImageError, MissingInputError
        If it cannot be read or has values that are not finite.
    DataError
        If values lie outside 0–1 by more than rounding.
    """
    data, grid = _read(path)
    if data.min() < -ROUNDING or data.max() > 1 + ROUNDING:
        raise DataError(
            f"values from {data.min():g} to {data.max():g}", file=path, expected="probabilities from 0 to 1"
        )
    return data, grid


def _read_labels(path: Path) -> tuple[npt.NDArray[np.int32], Grid]:
    data, grid = _read(path)
    return data.astype(np.int32), grid


def _read(path: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    grid = inspect_header(path).grid
    try:
        image: Any = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(grid.shape)
    except READ_ERRORS as error:
        raise ImageError(
            f"voxels cannot be read ({error})", file=path, remedy="copy the file again"
        ) from error
    if not np.isfinite(data).all():
        raise ImageError("NaN or infinite voxels", file=path, expected="finite values")
    return data, grid
