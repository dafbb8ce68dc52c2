"""Tables and JSON of an evaluation: columns with their meaning, rows with profile and space in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass

import numpy as np

from bids_scseg import __version__
from bids_scseg.bids.evaluate import FolderEvaluation, PairFacts
from bids_scseg.measure.evaluate import METRICS
from bids_scseg.measure.evaluation import Evaluation
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.measure.schema import Column, Value
from bids_scseg.measure.statistics import LEVEL, RESAMPLES, Interval
from bids_scseg.report.evaluation_subjects import subjects_json

Rows = list[dict[str, Value]]

_PROFILE = (
    Column(name="profile", dtype="str", description="Rules of the lesion-wise numbers."),
    Column(name="space", dtype="str", description="Space of the reference masks; native: as acquired."),
    Column(
        name="split_side",
        dtype="str",
        description="Side of the training's split whose subjects are evaluated; n/a: chosen otherwise.",
    ),
    Column(name="split", dtype="str", description="That split."),
    Column(name="prediction", dtype="str", description="Name of the method."),
)
_INTERVAL = (
    Column(name="mean", dtype="float64", description="Mean, or pooled ratio."),
    Column(
        name="low", dtype="float64", description="Lower end of the 95 % bootstrap interval over subjects."
    ),
    Column(name="high", dtype="float64", description="Upper end."),
    Column(name="subjects", dtype="Int64", description="Subjects that were resampled."),
    Column(name="reason", dtype="str", description="Why there is no interval."),
)
IMAGE_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(
        name="participant_id", dtype="str", description="Participant, or the file's name where it has none."
    ),
    Column(
        name="training_side",
        dtype="str",
        description="Participant's side in the training of the prediction's model; n/a: none or not known.",
    ),
    Column(name="reference", dtype="str", description="Reference mask, below its folder."),
    Column(name="prediction_file", dtype="str", description="Predicted mask, below its folder."),
    Column(
        name="paired_by", dtype="str", description="How the partner was found: name, entities or session."
    ),
    Column(name="probability_file", dtype="str", description="Probability map used."),
    Column(name="unusable_map", dtype="str", description="What was wrong with a map that was found."),
    Column(name="spacing_mm", dtype="str", description="Voxel size of the reference mask.", units="mm"),
    Column(
        name="resampled", dtype="boolean", description="Whether the prediction came from another lattice."
    ),
    Column(
        name="truth_outside_mm3",
        dtype="float64",
        description="True lesions outside the prediction's field of view; they count as not found.",
        units="mm^3",
    ),
    Column(name="truth_count", dtype="Int64", description="True lesions."),
    Column(name="predicted_count", dtype="Int64", description="Predicted lesions."),
    Column(name="found", dtype="Int64", description="True lesions found."),
    Column(name="false_positives", dtype="Int64", description="Predicted lesions that are none."),
    Column(name="truth_mm3", dtype="float64", description="True volume.", units="mm^3"),
    Column(name="predicted_mm3", dtype="float64", description="Predicted volume.", units="mm^3"),
    *(Column(name=m.name, dtype="float64", description=f"{m.description}.") for m in METRICS),
)
LESION_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(name="participant_id", dtype="str", description="Participant."),
    Column(name="reference", dtype="str", description="Reference mask of the image."),
    Column(name="side", dtype="str", description="truth or prediction."),
    Column(name="number", dtype="Int64", description="Number under the profile's connectivity."),
    Column(name="volume_mm3", dtype="float64", description="Volume.", units="mm^3"),
    Column(name="matched", dtype="boolean", description="True lesion: found. Predicted lesion: right."),
    Column(name="covered", dtype="float64", description="Share of its voxels in lesions of the other side."),
    Column(name="best_iou", dtype="float64", description="Best intersection over union with one of those."),
    Column(name="probability", dtype="float64", description="Mean lesion probability over its voxels."),
    Column(name="level", dtype="str", description="Vertebral level, from the lesion table."),
    Column(name="column", dtype="str", description="Column of the cord, from the lesion table."),
)
SUMMARY_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(name="column", dtype="str", description="Cohort column; all for everybody."),
    Column(name="value", dtype="str", description="Its value."),
    Column(name="metric", dtype="str", description="Name; pooled_ over all lesions or volume at once."),
    *_INTERVAL,
    Column(name="images", dtype="Int64", description="Images of the group."),
    Column(
        name="undefined",
        dtype="Int64",
        description="Those left out, the metric being undefined there; of pooled_ ones, for the subject.",
    ),
)
STRATUM_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(name="by", dtype="str", description="size, level or column of the lesion."),
    Column(name="stratum", dtype="str", description="Which."),
    Column(name="measure", dtype="str", description="sensitivity of true or precision of predicted lesions."),
    Column(name="lesions", dtype="Int64", description="Lesions of the stratum."),
    Column(name="matched", dtype="Int64", description="Those found, or right."),
    *_INTERVAL,
)
COMPARISON_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(name="baseline", dtype="str", description="Method compared with."),
    Column(name="metric", dtype="str", description="Name."),
    *_INTERVAL,
    Column(
        name="median_difference", dtype="float64", description="Over subjects, prediction minus baseline."
    ),
    Column(name="ties", dtype="Int64", description="Subjects without a difference."),
    Column(name="p", dtype="float64", description="Wilcoxon's signed-rank test, two-sided."),
    Column(
        name="p_holm", dtype="float64", description="Holm's correction over the methods, for this metric."
    ),
    Column(name="p_reason", dtype="str", description="Why there is no p."),
    Column(name="images", dtype="Int64", description="Images that both methods have."),
    Column(name="undefined", dtype="Int64", description="Those left out, either metric being undefined."),
)
UNPAIRED_COLUMNS: tuple[Column, ...] = (
    *_PROFILE,
    Column(name="side", dtype="str", description="truth or prediction."),
    Column(name="file", dtype="str", description="Path below its folder."),
    Column(
        name="state",
        dtype="str",
        description="missing partner, ambiguous partners, a refused pair, or a space elsewhere.",
    ),
    Column(name="reason", dtype="str", description="In words."),
)


def all_tables(found: FolderEvaluation) -> dict[str, tuple[tuple[Column, ...], Rows]]:
    """File name → columns and rows."""
    evaluation = found.evaluation
    chosen = found.selection
    head: dict[str, Value] = {
        "profile": evaluation.profile,
        "space": evaluation.space,
        "split_side": chosen.side or None,
        "split": None if chosen.split is None else str(chosen.split),
    }
    return {
        "images": (IMAGE_COLUMNS, [head | row for row in _image_rows(found)]),
        "lesions": (LESION_COLUMNS, [head | row for row in _lesion_rows(evaluation)]),
        "summary": (SUMMARY_COLUMNS, [head | row for row in _summary_rows(evaluation)]),
        "strata": (STRATUM_COLUMNS, [head | row for row in _stratum_rows(evaluation)]),
        "comparisons": (COMPARISON_COLUMNS, [head | row for row in _comparison_rows(evaluation)]),
        "unpaired": (UNPAIRED_COLUMNS, [head | row for row in _unpaired_rows(found)]),
    }


def _image_rows(found: FolderEvaluation) -> Iterable[dict[str, Value]]:
    for result, facts in zip(found.evaluation.results, found.facts, strict=True):
        scores = result.scores
        yield {
            "prediction": result.key.prediction,
            "participant_id": result.key.subject,
            "training_side": found.trainings[result.key.prediction].side_of(result.key.subject) or None,
            "reference": result.key.image,
            "prediction_file": facts.pair.prediction.relative,
            "paired_by": facts.pair.how,
            "probability_file": facts.probability or None,
            "unusable_map": facts.unusable_map or None,
            "spacing_mm": _spacing(facts),
            "resampled": facts.resampled,
            "truth_outside_mm3": facts.truth_outside_mm3,
            "truth_count": scores.truth_count,
            "predicted_count": scores.predicted_count,
            "found": scores.found,
            "false_positives": scores.false_positives,
            "truth_mm3": scores.truth_mm3,
            "predicted_mm3": scores.predicted_mm3,
            **result.values,
        }


def _spacing(facts: PairFacts) -> str:
    return " x ".join(f"{step:.3g}" for step in facts.spacing_mm)


def _lesion_rows(evaluation: Evaluation) -> Iterable[dict[str, Value]]:
    for result in evaluation.results:
        head: dict[str, Value] = {
            "prediction": result.key.prediction,
            "participant_id": result.key.subject,
            "reference": result.key.image,
        }
        for lesion in result.lesions:
            yield head | asdict(lesion)


def _interval(interval: Interval) -> dict[str, Value]:
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "subjects": interval.subjects,
        "reason": interval.reason or None,
    }


def _summary_rows(evaluation: Evaluation) -> Iterable[dict[str, Value]]:
    for row in evaluation.summary:
        yield {
            "prediction": row.prediction,
            "column": row.column,
            "value": row.value,
            "metric": row.metric,
            **_interval(row.interval),
            "images": row.images,
            "undefined": row.undefined,
        }


def _stratum_rows(evaluation: Evaluation) -> Iterable[dict[str, Value]]:
    for row in evaluation.strata:
        yield {
            "prediction": row.prediction,
            "by": row.by,
            "stratum": row.stratum,
            "measure": row.measure,
            "lesions": row.lesions,
            "matched": row.matched,
            **_interval(row.interval),
        }


def _comparison_rows(evaluation: Evaluation) -> Iterable[dict[str, Value]]:
    for row in evaluation.comparisons:
        yield {
            "prediction": row.prediction,
            "baseline": row.baseline,
            "metric": row.metric,
            **_interval(row.difference),
            "median_difference": row.test.median_difference,
            "ties": row.test.zeros,
            "p": row.test.p,
            "p_holm": row.p_holm,
            "p_reason": row.test.reason or None,
            "images": row.images,
            "undefined": row.undefined,
        }


def _unpaired_rows(found: FolderEvaluation) -> Iterable[dict[str, Value]]:
    for name, items in found.unpaired.items():
        for item in items:
            yield {
                "prediction": name,
                "side": item.side,
                "file": item.file,
                "state": item.state,
                "reason": item.reason,
            }


def as_json(found: FolderEvaluation) -> dict[str, object]:
    """Everything but the single lesions, as plain data."""
    evaluation = found.evaluation
    made = all_tables(found)
    return {
        "profile": evaluation.profile,
        "profile_rules": PROFILES[evaluation.profile].description,
        "space": evaluation.space,
        "version": __version__,
        "settings": {
            "truth": str(found.request.truth),
            "predictions": {name: str(path) for name, path in found.request.predictions.items()},
            "probabilities": {name: str(path) for name, path in found.request.probabilities.items()},
            "by": list(found.request.by),
            "baseline": evaluation.baseline or None,
            "seed": found.request.seed,
            "confidence_level": LEVEL,
            "resamples": RESAMPLES,
        },
        "subjects": subjects_json(found),
        "notes": list(evaluation.notes),
        "counts": {name: pair_counts(found, name) for name in found.unpaired},
        "summary": made["summary"][1],
        "strata": made["strata"][1],
        "comparisons": made["comparisons"][1],
        "methods": [_plain(method) for method in evaluation.methods],
        "images": made["images"][1],
        "unpaired": made["unpaired"][1],
    }


def _plain(value: object) -> object:
    """Records and arrays as plain data."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def pair_counts(found: FolderEvaluation, name: str) -> dict[str, int]:
    """Pairs of a method, and files left out by side and state."""
    items = found.unpaired[name]
    return {
        "pairs": sum(result.key.prediction == name for result in found.evaluation.results),
        **{
            f"{side}_{state}": sum((item.side, item.state) == (side, state) for item in items)
            for side in ("truth", "prediction")
            for state in ("missing", "ambiguous", "refused", "elsewhere")
        },
    }
