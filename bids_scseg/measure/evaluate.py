"""Evaluation of one image: scores, distances, calibration, and every lesion of truth and prediction.

Works on arrays and plain records; files are found and read elsewhere (:mod:`bids_scseg.bids.pairs`),
summaries over images are in :mod:`bids_scseg.measure.evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.agreement import SurfaceDistances, surface_distances
from bids_scseg.measure.calibration import CalibrationSums, calibrate, calibration_sums
from bids_scseg.measure.overlap import LesionMatch, OverlapScores, find_profile, match_lesions, score_match
from bids_scseg.measure.profiles import iou
from bids_scseg.space.grid import Grid

Mask = npt.NDArray[Any]
NAN = float("nan")
Side = Literal["truth", "prediction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of one image: name, heading, and which images have it."""

    name: str
    text: str
    description: str


#: Numbers averaged over images; each is left out, and counted, where it is undefined.
METRICS = (
    Metric(name="f1", text="Lesion-wise F1", description="harmonic mean of sensitivity and precision"),
    Metric(name="dice", text="Dice", description="2|A∩B| / (|A|+|B|) of the masks"),
    Metric(name="sensitivity", text="Sensitivity", description="share of the true lesions that are found"),
    Metric(name="precision", text="Precision", description="share of the predicted lesions that are right"),
    Metric(
        name="average_distance_mm",
        text="Surface distance, mm",
        description="mean distance between the surfaces, both ways; undefined if a mask is empty",
    ),
    Metric(
        name="robust_distance_mm",
        text="Hausdorff 95 %, mm",
        description="larger of the two directed 95th percentiles; undefined if a mask is empty",
    ),
    Metric(name="volume_difference_mm3", text="Volume difference, mm³", description="predicted minus true"),
    Metric(name="count_difference", text="Count difference", description="predicted minus true lesions"),
    Metric(
        name="false_positives_lesion_free",
        text="False lesions where there is none",
        description="predicted lesions in lesion-free images; undefined in all others",
    ),
    Metric(
        name="specificity",
        text="Specificity",
        description="1 where nothing was predicted in a lesion-free image, else 0; undefined in all others",
    ),
    Metric(
        name="calibration_error",
        text="Calibration error",
        description="expected calibration error of the image; undefined without a probability map",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LesionNames:
    """Where the lesions of a mask lie, as a lesion table tells.

    Attributes
    ----------
    labels : (i, j, k) int
        Numbers of that table, on the lattice of the evaluation.
    places
        Number → (level, column); None where the table does not say.
    """

    labels: npt.NDArray[Any]
    places: Mapping[int, tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageKey:
    """Whose image it is.

    Attributes
    ----------
    prediction
        Name of the method.
    image
        The reference mask, relative to its folder: the same for all methods.
    subject
        Independent unit of the statistics.
    groups
        Cohort column → value.
    """

    prediction: str
    image: str
    subject: str
    groups: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionResult:
    """One lesion of the truth or of the prediction.

    Attributes
    ----------
    side
        ``truth`` or ``prediction``.
    number
        Number under the profile's labelling, in that mask.
    volume_mm3
        Volume.
    matched
        A true lesion that is found; a predicted one that is right.
    covered
        Share of its voxels inside lesions of the other side.
    best_iou
        Largest intersection over union with a lesion of the other side; 0 without any.
    probability
        Mean lesion probability over its voxels; NaN without a map.
    level, column
        From the lesion table; None where not known.
    """

    side: Side
    number: int
    volume_mm3: float
    matched: bool
    covered: float
    best_iou: float
    probability: float
    level: str | None
    column: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageResult:
    """Everything that the summaries need to know of one image under one method.

    Attributes
    ----------
    key
        Whose it is.
    scores, distances
        Agreement of the masks.
    shared_mm3
        Volume that both masks have.
    lesions
        Lesions of both sides.
    table : (true + 1, predicted + 1) int64
        Overlap of lesions, for FROC.
    calibration
        Sums; None without a probability map.
    """

    key: ImageKey
    scores: OverlapScores
    distances: SurfaceDistances
    shared_mm3: float
    lesions: tuple[LesionResult, ...]
    table: npt.NDArray[np.int64]
    calibration: CalibrationSums | None

    @property
    def values(self) -> dict[str, float]:
        """Every metric of :data:`METRICS`, NaN where undefined."""
        scores, free = self.scores, self.scores.truth_count == 0
        error = NAN if self.calibration is None else calibrate(self.calibration).expected_error
        return {
            "f1": scores.f1,
            "dice": scores.dice,
            "sensitivity": scores.sensitivity,
            "precision": scores.precision,
            "average_distance_mm": self.distances.average,
            "robust_distance_mm": self.distances.robust,
            "volume_difference_mm3": scores.difference_mm3,
            "count_difference": float(scores.count_difference),
            "false_positives_lesion_free": float(scores.false_positives) if free else NAN,
            "specificity": float(scores.predicted_count == 0) if free else NAN,
            "calibration_error": error,
        }


def evaluate_image(
    truth: Mask,
    prediction: Mask,
    *,
    grid: Grid,
    profile: str,
    key: ImageKey,
    probability: npt.NDArray[np.floating] | None = None,
    inside: npt.NDArray[np.bool_] | None = None,
    truth_names: LesionNames | None = None,
    predicted_names: LesionNames | None = None,
) -> ImageResult:
    """Compare one prediction with its truth, both on the lattice of the truth.

    Parameters
    ----------
    truth, prediction : (i, j, k)
        Masks, nonzero is lesion; either may be empty.
    grid
        Their lattice.
    profile
        Name of the rules.
    key
        Whose image it is.
    probability : (i, j, k) float, optional
        Lesion probability.
    inside : (i, j, k) bool, optional
        Voxels that the probability map covers; all without it.
    truth_names, predicted_names
        Level and column of lesions where known; a lesion has those of the number that most of
        its voxels bear.

    Returns
    -------
    ImageResult

    Raises
    ------
    GeometryError
        If shapes differ.
    DataError
        If there is no such profile, or the probabilities are none.
    """
    volume = grid.voxel_volume
    match = match_lesions(truth, prediction, profile=find_profile(profile), voxel_volume_mm3=volume)
    return ImageResult(
        key=key,
        scores=score_match(match, truth, prediction, voxel_volume_mm3=volume),
        distances=surface_distances(truth, prediction, spacing=grid.spacing),
        shared_mm3=float(((truth > 0) & (prediction > 0)).sum() * volume),
        lesions=(
            *_lesions(match, "truth", volume, probability=probability, names=truth_names),
            *_lesions(match, "prediction", volume, probability=probability, names=predicted_names),
        ),
        table=match.table,
        calibration=None if probability is None else calibration_sums(truth, probability, inside=inside),
    )


def _lesions(
    match: LesionMatch,
    side: Side,
    voxel_volume_mm3: float,
    *,
    probability: npt.NDArray[np.floating] | None,
    names: LesionNames | None,
) -> Iterable[LesionResult]:
    true = side == "truth"
    labels, table = (match.truth, match.table) if true else (match.prediction, match.table.T)
    matched = match.found if true else match.right
    if matched.size == 0:
        return
    sizes, overlap = table[1:].sum(axis=1), iou(table).max(axis=1, initial=0.0)
    mean = _means(labels, probability, count=matched.size)
    places = _places(labels, names, count=matched.size)
    for index in range(matched.size):
        level, column = places[index]
        yield LesionResult(
            side=side,
            number=index + 1,
            volume_mm3=float(sizes[index] * voxel_volume_mm3),
            matched=bool(matched[index]),
            covered=float(table[index + 1, 1:].sum() / sizes[index]),
            best_iou=float(overlap[index]),
            probability=float(mean[index]),
            level=level,
            column=column,
        )


def _means(
    labels: npt.NDArray[np.int32], probability: npt.NDArray[np.floating] | None, *, count: int
) -> npt.NDArray[np.float64]:
    if probability is None:
        return np.full(count, NAN)
    where = labels > 0
    number = labels[where]
    sums = np.bincount(number, weights=probability[where], minlength=count + 1)
    return np.asarray(sums[1:] / np.bincount(number, minlength=count + 1)[1:])


def _places(
    labels: npt.NDArray[np.int32], names: LesionNames | None, *, count: int
) -> list[tuple[str | None, str | None]]:
    nowhere: tuple[str | None, str | None] = (None, None)
    if names is None:
        return [nowhere] * count
    both = (labels > 0) & (names.labels > 0)
    pairs, voxels = np.unique(
        np.stack([labels[both], names.labels[both].astype(np.int64)]), axis=1, return_counts=True
    )
    best: dict[int, tuple[int, int]] = {}
    for (own, named), size in zip(pairs.T.tolist(), voxels.tolist(), strict=True):
        if size > best.get(own, (0, 0))[0]:
            best[own] = (size, named)
    return [names.places.get(best[n][1], nowhere) if n in best else nowhere for n in range(1, count + 1)]
