"""What an evaluation leaves: tables with their dictionaries, one JSON file, one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_scseg import __version__
from bids_scseg.bids.evaluate import FolderEvaluation, PairFacts
from bids_scseg.bids.pairs import Unpaired
from bids_scseg.bids.write import write_json, write_tsv
from bids_scseg.measure.evaluate import METRICS, ImageResult
from bids_scseg.measure.evaluation import EVERYBODY, Evaluation, SummaryRow
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.measure.schema import data_dictionary
from bids_scseg.measure.statistics import LEVEL, RESAMPLES, Interval
from bids_scseg.report import encode, pages, tables
from bids_scseg.report import evaluation_figures as figures
from bids_scseg.report.evaluation_subjects import sentences, short_words, subject_flags
from bids_scseg.report.evaluation_tables import all_tables, as_json, pair_counts
from bids_scseg.report.flags import by_severity
from bids_scseg.report.records import Flag
from bids_scseg.report.session import Shown, Tile
from bids_scseg.report.tables import Cell, Header, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENTS = (
    ("summary", "Summary"),
    ("warnings", "Warnings"),
    ("scores", "Scores"),
    ("comparisons", "Comparisons"),
    ("cohort", "Cohort"),
    ("lesions", "Kinds of lesions"),
    ("volumes", "Volumes"),
    ("probabilities", "Probabilities"),
    ("images", "Images"),
    ("unpaired", "Left out"),
    ("methods", "How it was done"),
)
HEADLINE = ("f1", "dice", "sensitivity", "precision")


def write_evaluation(found: FolderEvaluation, out: str | Path) -> Path:
    """Write tables, JSON and page.

    Parameters
    ----------
    found
        The evaluation.
    out
        Folder; created where absent, files of the same names are replaced.

    Returns
    -------
    The page.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    root = Path(out)
    written = all_tables(found)
    for name, (columns, rows) in written.items():
        write_tsv(root, f"{name}.tsv", rows, columns=[column.name for column in columns])
        write_json(root, f"{name}.json", data_dictionary(columns))
    write_json(root, "evaluation.json", as_json(found))
    page = root / "evaluation.html"
    pages.write_page(page, pages.render_page("evaluation.html", _context(found)))
    return page


# ---------------------------------------------------------------- the page


def _context(found: FolderEvaluation) -> dict[str, object]:
    evaluation, request = found.evaluation, found.request
    rules = PROFILES[evaluation.profile]
    shown = {name: _shown(name, figure) for name, figure in _figures(evaluation) if figure is not None}
    return {
        "title": "Evaluation",
        "head": [
            ("Profile", evaluation.profile),
            ("Space", evaluation.space),
            ("Truth", str(request.truth)),
            ("Subjects", short_words(found)),
            ("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ],
        "tiles": _tiles(evaluation),
        "lead": _lead(found),
        "subjects": sentences(found),
        "flags": by_severity(_flags(found)),
        "scores": _scores_table(evaluation, EVERYBODY, EVERYBODY),
        "pooled": _scores_table(evaluation, EVERYBODY, EVERYBODY, pooled=True),
        "comparisons": _comparisons_table(evaluation),
        "baseline": evaluation.baseline,
        "cohort": list(_cohort_tables(evaluation)),
        "strata": _strata_table(evaluation),
        "agreement": _agreement_table(evaluation),
        "probabilities": _probability_table(evaluation),
        "images": _images_table(found),
        "unpaired": _unpaired_table(found),
        "methods": list(_methods(evaluation, rules.description)),
        "figures": shown,
        "version": __version__,
        "contents": [{"id": name, "text": text, "sub": False} for name, text in CONTENTS],
    }


def _figures(evaluation: Evaluation) -> Iterable[tuple[str, Figure | None]]:
    yield "scores", figures.draw_scores(evaluation)
    yield "agreement", figures.draw_agreement(evaluation)
    for by in ("size", "level", "column"):
        yield by, figures.draw_strata(evaluation, by)
    yield "probabilities", figures.draw_probabilities(evaluation)


CAPTIONS: Mapping[str, str] = {
    "scores": "A point is an image; beside the points, the mean with its 95 % interval over subjects.",
    "agreement": f"A point is an image. {figures.limits_words()}",
    "size": "Share of lesions found (of the true ones) and right (of the predicted ones), with 95 % "
    "intervals over subjects; below each class, its number of lesions under the first method that has any.",
    "level": "The same by vertebral level.",
    "column": "The same by column of the cord.",
    "probabilities": "Left: lesions are kept from falling probabilities on. Right: voxels of probability "
    "0.01 and more, and their number below.",
}


def _shown(name: str, figure: Figure) -> Shown:
    pixels = encode.render(figure)
    return Shown(
        section=name, key=name, title="", caption=CAPTIONS[name], alt=f"Plot: {CAPTIONS[name]}",
        uri=encode.data_uri(encode.webp(pixels)), href="",
        width=round(pixels.shape[1] * 100 / encode.DPI), height=round(pixels.shape[0] * 100 / encode.DPI),
    )  # fmt: skip


def _number(value: float, digits: int = 2) -> str:
    return tables.number(digits)(value)


def _with_interval(interval: Interval, digits: int = 2) -> str:
    if np.isnan(interval.mean):
        return tables.ABSENT
    mean = _number(interval.mean, digits)
    if np.isnan(interval.low):
        return mean
    return f"{mean} ({_number(interval.low, digits)} to {_number(interval.high, digits)})"


def _tiles(evaluation: Evaluation) -> list[Tile]:
    """Of the first method; others are in the table below."""
    method = evaluation.methods[0]
    rows = {row.metric: row.interval for row in _everybody(evaluation, method.prediction)}
    tone = "caution" if len(evaluation.methods) > 1 else ""
    several = f" ({figures.short(method.prediction)})" if tone else ""
    texts = {metric.name: metric.text for metric in METRICS}
    return [
        Tile(name="images", value=str(method.images)),
        Tile(name="subjects", value=str(len({result.key.subject for result in evaluation.results}))),
        *(Tile(name=f"{texts[name]}{several}", value=_number(rows[name].mean)) for name in HEADLINE),
    ]


def _everybody(evaluation: Evaluation, prediction: str) -> list[SummaryRow]:
    return [row for row in evaluation.summary if row.column == EVERYBODY and row.prediction == prediction]


def _lead(found: FolderEvaluation) -> str:
    evaluation = found.evaluation
    parts = []
    for method in evaluation.methods:
        rows = {row.metric: row for row in _everybody(evaluation, method.prediction)}
        f1, dice = rows["f1"], rows["dice"]
        parts.append(
            f"{method.prediction}: lesion-wise F1 {_with_interval(f1.interval)}, Dice "
            f"{_with_interval(dice.interval)} (means over {f1.images - f1.undefined} and "
            f"{dice.images - dice.undefined} of {method.images} images; lesion-free images: "
            f"{method.lesion_free})."
        )
    return f"Profile {evaluation.profile}, {evaluation.space} space. " + " ".join(parts)


def _flags(found: FolderEvaluation) -> Iterable[Flag]:
    yield from subject_flags(found)
    for name in found.unpaired:
        counts = pair_counts(found, name)
        for state, severity in (("refused", "serious"), ("ambiguous", "serious"), ("missing", "caution")):
            number = counts[f"truth_{state}"], counts[f"prediction_{state}"]
            if any(number):
                yield Flag(
                    severity=severity,  # type: ignore[arg-type]
                    title=f"{name}: {number[0]} reference masks and {number[1]} predictions {state}",
                    text="They are in no number of this page; see Left out.",
                )
    yield from _flags_elsewhere(found)
    resampled = sum(facts.resampled for facts in found.facts)
    if resampled:
        yield Flag(
            severity="note",
            title=f"{resampled} of {len(found.facts)} predictions resampled",
            text="They lay on another lattice than the reference mask and were brought onto it by the "
            "nearest voxel.",
        )
    maps = [facts.unusable_map for facts in found.facts if facts.unusable_map]
    if maps:
        yield Flag(
            severity="caution",
            title=f"{len(maps)} probability maps cannot be used",
            text=f"The masks count, FROC and calibration lack these images. The first: {maps[0]}.",
        )
    loose = sum(facts.pair.how == "session" for facts in found.facts)
    if loose:
        yield Flag(
            severity="note",
            title=f"{loose} of {len(found.facts)} pairs found by session alone",
            text="The prediction's name says more about its image than the reference mask's; they were taken "
            "for one another because the session leaves no other choice.",
        )
    outside = [facts for facts in found.facts if facts.truth_outside_mm3 > 0]
    if outside:
        yield Flag(
            severity="caution",
            title=f"True lesions outside the prediction's field of view in {len(outside)} images",
            text=f"{_number(sum(facts.truth_outside_mm3 for facts in outside), 0)} mm³ count as not found.",
        )
    yield from (Flag(severity="note", title=note) for note in found.evaluation.notes)


def _flags_elsewhere(found: FolderEvaluation) -> Iterable[Flag]:
    """Reference masks in other spaces are the same for all predictions."""
    items = [item for item in next(iter(found.unpaired.values())) if item.state == "elsewhere"]
    alone = sum("has none" in item.reason for item in items)
    if items:
        yield Flag(
            severity="caution" if alone else "note",
            title=f"{len(items)} reference masks lie in other spaces than {found.evaluation.space}",
            text=f"They are in no number of this page; of {alone} of them, the subject has no other mask "
            "(see Left out, and --space).",
        )


def _scores_table(evaluation: Evaluation, column: str, value: str, *, pooled: bool = False) -> Table:
    """Metrics as rows, methods as columns."""
    rows = {
        (row.metric, row.prediction): row
        for row in evaluation.summary
        if (row.column, row.value) == (column, value) and row.metric.startswith("pooled_") == pooled
    }
    names = [method.prediction for method in evaluation.methods]
    texts = {metric.name: metric.text for metric in METRICS}
    body = []
    for metric in dict.fromkeys(name for name, _ in rows):
        cells: list[Cell] = [Cell(text=texts.get(metric, metric.removeprefix("pooled_").capitalize()))]
        for name in names:
            row = rows.get((metric, name))
            cells += _score_cells(row)
        body.append(tuple(cells))
    headers = [Header(text="Metric")]
    for name in names:
        headers += [Header(text=name, numeric=True), Header(text="images (undefined)", numeric=True)]
    return Table(headers=tuple(headers), rows=tuple(body))


def _score_cells(row: SummaryRow | None) -> list[Cell]:
    if row is None:
        return [Cell(text=tables.ABSENT), Cell(text=tables.ABSENT)]
    digits = 3 if row.metric == "calibration_error" else 1 if "_mm" in row.metric else 2
    shown = Cell(text=_with_interval(row.interval, digits), sort=repr(row.interval.mean))
    return [shown, Cell(text=f"{row.images} ({row.undefined})", tone="muted")]


def _comparisons_table(evaluation: Evaluation) -> Table:
    headers = ("Method", "Metric", "Mean difference", "Median", "Subjects (ties)", "p", "p, Holm")
    texts = {metric.name: metric.text for metric in METRICS}
    body = []
    for row in evaluation.comparisons:
        digits = 2 if row.metric.endswith("_mm") else 3
        body.append(
            (
                Cell(text=row.prediction),
                Cell(text=texts[row.metric]),
                Cell(text=_with_interval(row.difference, digits)),
                Cell(text=_number(row.test.median_difference, digits)),
                Cell(text=f"{row.test.n} ({row.test.zeros})"),
                Cell(text=_p(row.test.p) if not row.test.reason else row.test.reason),
                Cell(text=_p(row.p_holm)),
            )
        )
    return Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body), sortable=True)


def _p(value: float) -> str:
    if np.isnan(value):
        return tables.ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cohort_tables(evaluation: Evaluation) -> Iterable[Table]:
    """One table per cohort column: values as rows, methods and headline metrics as columns."""
    texts = {metric.name: metric.text for metric in METRICS}
    for column in dict.fromkeys(row.column for row in evaluation.summary if row.column != EVERYBODY):
        rows = [row for row in evaluation.summary if row.column == column]
        lookup = {(row.value, row.prediction, row.metric): row for row in rows}
        body = []
        for value in dict.fromkeys(row.value for row in rows):
            for name in dict.fromkeys(row.prediction for row in rows):
                own = [lookup.get((value, name, metric)) for metric in HEADLINE]
                if own[0] is not None:
                    counts = Cell(text=f"{own[0].images} ({own[0].undefined})")
                    cells = [_score_cells(row)[0] for row in own]
                    body.append((Cell(text=value), Cell(text=name), counts, *cells))
        headers = (column, "Method", "Images (F1 undefined)", *(texts[name] for name in HEADLINE))
        yield Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body), sortable=True)


def _strata_table(evaluation: Evaluation) -> Table:
    headers = ("Method", "By", "Lesions that are", "Measure", "Lesions", "Found or right", "Share")
    body = [
        (
            Cell(text=row.prediction),
            Cell(text=row.by),
            Cell(text=row.stratum),
            Cell(text=row.measure),
            Cell(text=str(row.lesions), sort=str(row.lesions)),
            Cell(text=str(row.matched), sort=str(row.matched)),
            Cell(text=_with_interval(row.interval), sort=repr(row.interval.mean)),
        )
        for row in evaluation.strata
    ]
    return Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body), sortable=True)


def _agreement_table(evaluation: Evaluation) -> Table:
    headers = ("Method", "Of", "Images", "Bias", "Limits of agreement", "Concordance", "")
    body = []
    for method in evaluation.methods:
        for what, found, digits in (("volume, mm³", method.volume, 0), ("lesions", method.count, 1)):
            limits = f"{_number(found.lower, digits)} to {_number(found.upper, digits)}"
            body.append(
                (
                    Cell(text=method.prediction),
                    Cell(text=what),
                    Cell(text=str(found.n)),
                    Cell(text=_number(found.bias, digits)),
                    Cell(text=limits),
                    Cell(text=_number(found.concordance)),
                    Cell(text=found.reason, tone="muted"),
                )
            )
    return Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body))


def _probability_table(evaluation: Evaluation) -> Table:
    headers = (
        "Method", "Images", "Without a map", "FROC score", "Expected error", "Largest error", "Brier score",
        "Expected error, whole image", "Lesion voxels below 0.01",
    )  # fmt: skip
    body = []
    for method in evaluation.methods:
        froc, found = method.froc, method.calibration
        if froc is None or found is None:
            continue
        numbers = (found.expected_error, found.largest_error, found.brier)
        body.append(
            (
                Cell(text=method.prediction),
                Cell(text=str(method.images - method.without_probability)),
                Cell(text=str(method.without_probability)),
                Cell(text=_number(froc.score, 3)),
                *(Cell(text=_number(value, 3)) for value in numbers),
                Cell(text=_number(found.whole_error, 5)),
                Cell(text=_number(found.certain_lesion, 0)),
            )
        )
    return Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body))


def _images_table(found: FolderEvaluation) -> Table:
    headers = (
        "Reference mask", "Method", "True", "Predicted", "Found", "False", "F1", "Dice", "True, mm³",
        "Predicted, mm³", "Surface, mm",
    )  # fmt: skip
    body = [
        _image_cells(result, facts)
        for result, facts in zip(found.evaluation.results, found.facts, strict=True)
    ]
    numeric = [False, False, *[True] * (len(headers) - 2)]
    return Table(
        headers=tuple(Header(text=text, numeric=n) for text, n in zip(headers, numeric, strict=True)),
        rows=tuple(body),
        sortable=True,
    )


def _image_cells(result: ImageResult, facts: PairFacts) -> tuple[Cell, ...]:
    scores = result.scores
    numbers: Sequence[tuple[float, int]] = (
        (scores.truth_count, 0), (scores.predicted_count, 0), (scores.found, 0), (scores.false_positives, 0),
        (scores.f1, 2), (scores.dice, 2), (scores.truth_mm3, 0), (scores.predicted_mm3, 0),
        (result.distances.average, 1),
    )  # fmt: skip
    return (
        Cell(text=result.key.image + (" (resampled)" if facts.resampled else "")),
        Cell(text=result.key.prediction),
        *(Cell(text=_number(v, digits), sort="" if np.isnan(v) else repr(float(v))) for v, digits in numbers),
    )


def _unpaired_table(found: FolderEvaluation) -> Table:
    def cells(name: str, item: Unpaired) -> tuple[Cell, ...]:
        return tuple(Cell(text=text) for text in (name, item.side, item.state, item.file, item.reason))

    body = [cells(name, item) for name, items in found.unpaired.items() for item in items]
    headers = ("Method", "Side", "State", "File", "Reason")
    return Table(headers=tuple(Header(text=text) for text in headers), rows=tuple(body), sortable=True)


def _methods(evaluation: Evaluation, rules: str) -> Iterable[str]:
    yield f"Rules of the lesion-wise numbers ({evaluation.profile}): {rules}"
    yield (
        "Every image is scored on the lattice of its reference mask. Means are taken over the images where a "
        "metric is defined; the others are counted beside it. Lesion-free images are scored by their false "
        "lesions and by specificity where the profile leaves their scores undefined."
    )
    yield "; ".join(f"{metric.text}: {metric.description}" for metric in METRICS) + "."
    yield (
        f"Intervals: {LEVEL:.0%} bootstrap (BCa, {RESAMPLES} resamples), subjects being resampled with all "
        "their images. Tests: Wilcoxon's signed-rank test, two-sided, on one number per subject (the mean "
        "over its images); subjects without a difference are left out of the ranks. Holm's correction runs "
        "over the methods compared, for each metric apart."
    )
    yield (
        "FROC: a predicted lesion's probability is the mean over its voxels; lesions are those of the "
        "predicted mask, so the curve ends where that mask does. The score is the mean sensitivity at 0.25, "
        "0.5, 1, 2 and 3 false lesions per image. Calibration: ten bins, over voxels of probability 0.01 and "
        "more, since sure background would make any map look calibrated."
    )
