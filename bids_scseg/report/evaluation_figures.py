"""Figures of an evaluation: scores, size, volume agreement, FROC, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bids_scseg.measure.agreement import LIMITS
from bids_scseg.measure.evaluate import ImageResult
from bids_scseg.measure.evaluation import Evaluation, MethodResult, StratumRow, stratum_order
from bids_scseg.measure.overlap import FROC_RATES
from bids_scseg.report.canvas import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH_IN,
    Canvas,
    new_canvas,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
#: Metrics drawn per image, all between 0 and 1.
DRAWN = (
    ("f1", "Lesion-wise F1"),
    ("dice", "Dice"),
    ("sensitivity", "Sensitivity"),
    ("precision", "Precision"),
)
MAX_NAME = 18  # characters of a method's name at an axis
JITTER = 0.16  # half width of the cloud of points
FROC_SHOWN = 6.0  # false positives per image up to which the curve is drawn


def colors(evaluation: Evaluation) -> dict[str, str]:
    """Method → colour, the same in every figure."""
    return {method.prediction: COLORS[n % len(COLORS)] for n, method in enumerate(evaluation.methods)}


def short(name: str) -> str:
    """A name that fits an axis; a dollar sign is no formula."""
    fits = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    return fits.replace("$", r"\$")


def draw_scores(evaluation: Evaluation) -> Figure:
    """Every image as a point per metric and method, the mean with its interval beside it."""
    with styled():
        canvas = new_canvas(WIDTH_IN, 3.1)
        for number, (name, title) in enumerate(DRAWN):
            axes = canvas.axes(0.55 + number * 2.65, 0.35, 2.2, 2.2)
            _scores(axes, evaluation, name)
            axes.set_title(title)
        return canvas.figure


def _scores(axes: Axes, evaluation: Evaluation, metric: str) -> None:
    names = [method.prediction for method in evaluation.methods]
    means = {(row.prediction, row.metric): row.interval for row in evaluation.summary if row.column == "all"}
    rng = np.random.default_rng(0)  # of the jitter
    for place, (name, color) in enumerate(colors(evaluation).items()):
        values = [result.values[metric] for result in evaluation.results if result.key.prediction == name]
        known = [value for value in values if not np.isnan(value)]
        x = place + rng.uniform(-JITTER, JITTER, len(known))
        axes.plot(x, known, ".", color=color, alpha=0.45, markersize=4)
        interval = means[name, metric]
        low, high = (interval.mean if np.isnan(end) else end for end in (interval.low, interval.high))
        axes.errorbar(
            place + 2 * JITTER,
            interval.mean,
            yerr=[[max(interval.mean - low, 0)], [max(high - interval.mean, 0)]],
            fmt="o", color=color, markersize=4, capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=20 if len(names) > 2 else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(-0.04, 1.04)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)


def draw_agreement(evaluation: Evaluation) -> Figure:
    """Bland and Altman's plot of volumes for each method."""
    with styled():
        many = len(evaluation.methods)
        rows = -(-many // 3)
        canvas = new_canvas(WIDTH_IN, 2.9 * rows + 0.1)
        for number, method in enumerate(evaluation.methods):
            axes = canvas.axes(0.75 + number % 3 * 3.5, 0.3 + number // 3 * 2.9, 2.7, 2.1)
            own = [result for result in evaluation.results if result.key.prediction == method.prediction]
            _bland_altman(axes, own, method, color=colors(evaluation)[method.prediction])
        return canvas.figure


def _bland_altman(axes: Axes, results: Sequence[ImageResult], method: MethodResult, *, color: str) -> None:
    middle = [(result.scores.truth_mm3 + result.scores.predicted_mm3) / 2 for result in results]
    axes.plot(middle, [result.scores.difference_mm3 for result in results], ".", color=color, alpha=0.6)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    agreement = method.volume
    for value, style in ((agreement.bias, "-"), (agreement.lower, "--"), (agreement.upper, "--")):
        if not np.isnan(value):
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=style)
    axes.set_title(short(method.prediction))
    axes.set_xlabel("Mean of true and predicted volume, mm³")
    axes.set_ylabel("Predicted minus true, mm³")


def draw_strata(evaluation: Evaluation, by: str) -> Figure | None:
    """Sensitivity and precision by size, level or column; None without such rows."""
    rows = [row for row in evaluation.strata if row.by == by]
    sides = [name for name in ("sensitivity", "precision") if any(row.measure == name for row in rows)]
    if not sides:
        return None
    with styled():
        canvas = new_canvas(WIDTH_IN, 3.0)
        for number, measure in enumerate(sides):
            axes = canvas.axes(0.6 + number * 5.3, 0.45, 4.6, 2.0)
            _strata(axes, [row for row in rows if row.measure == measure], colors(evaluation))
            axes.set_title(f"{measure.capitalize()} by {by}")
        _key(canvas, colors(evaluation))
        return canvas.figure


def _strata(axes: Axes, rows: Sequence[StratumRow], palette: Mapping[str, str]) -> None:
    strata = sorted({row.stratum for row in rows}, key=stratum_order)
    width = 0.8 / len(palette)
    for number, (name, color) in enumerate(palette.items()):
        own = {row.stratum: row for row in rows if row.prediction == name}
        for place, stratum in enumerate(strata):
            if stratum in own:
                x = place - 0.4 + (number + 0.5) * width
                _bar(axes, own[stratum], x=x, width=width * 0.9, color=color)
    counts = {row.stratum: row.lesions for row in reversed(rows)}
    words = [f"{short(stratum)}\n{counts[stratum]}" for stratum in strata]
    axes.set_xticks(range(len(strata)), words, fontsize=6, rotation=30 if len(strata) > 8 else 0)
    axes.set_ylim(0, 1.05)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)


def _key(canvas: Canvas, palette: Mapping[str, str]) -> None:
    """Which colour is whose; not needed for one method."""
    if len(palette) > 1:
        for number, (name, color) in enumerate(palette.items()):
            canvas.text(0.6 + number * 1.4, 0.05, f"■ {short(name)}", color=color, fontsize=8)


def _bar(axes: Axes, row: StratumRow, *, x: float, width: float, color: str) -> None:
    interval = row.interval
    axes.bar(x, interval.mean, width=width, color=color, alpha=0.75)
    if not np.isnan(interval.low):
        axes.plot([x, x], [interval.low, interval.high], color=BLACK, linewidth=0.9)


def draw_probabilities(evaluation: Evaluation) -> Figure | None:
    """FROC and calibration curves; None if no method has probabilities."""
    if all(method.froc is None for method in evaluation.methods):
        return None
    with styled():
        canvas = new_canvas(WIDTH_IN, 3.75)
        _froc(canvas.axes(0.65, 0.35, 4.2, 2.9), evaluation)
        _calibration(canvas, evaluation)
        return canvas.figure


def _froc(axes: Axes, evaluation: Evaluation) -> None:
    for name, color in colors(evaluation).items():
        curve = next(method.froc for method in evaluation.methods if method.prediction == name)
        if curve is None or np.isnan(curve.score):
            continue
        x = np.concatenate(
            [[0.0], curve.false_positives, [max(FROC_SHOWN, curve.false_positives.max(initial=0))]]
        )
        best = np.maximum.accumulate(np.concatenate([[0.0], curve.sensitivity]))
        label = f"{short(name)} ({curve.score:.2f})"
        axes.step(x, [*best, best[-1]], where="post", color=color, label=label)
    for rate in FROC_RATES:
        axes.axvline(rate, color=FAINT, linewidth=0.5)
    axes.set_xlim(0, FROC_SHOWN)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"FROC, rules of {evaluation.profile}")
    axes.set_xlabel("False lesions per image")
    axes.set_ylabel("Share of true lesions found")
    axes.legend(frameon=False, fontsize=7, loc="lower right", title="mean sensitivity at the grey lines",
                title_fontsize=6)  # fmt: skip


def _calibration(canvas: Canvas, evaluation: Evaluation) -> None:
    axes, counts = canvas.axes(6.1, 0.35, 4.2, 2.2), canvas.axes(6.1, 2.65, 4.2, 0.6)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9)
    for name, color in colors(evaluation).items():
        found = next(method.calibration for method in evaluation.methods if method.prediction == name)
        if found is None:
            continue
        label = f"{short(name)} ({found.expected_error:.3f})"
        axes.plot(found.predicted, found.observed, "o-", color=color, markersize=3, linewidth=1, label=label)
        middle = (found.low + found.high) / 2
        counts.step(middle, np.maximum(found.voxels, 0.5), where="mid", color=color, linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticklabels([])
    axes.set_title("Calibration")
    axes.set_ylabel("Share of voxels that are lesion")
    axes.legend(frameon=False, fontsize=7, loc="upper left", title="expected error", title_fontsize=6)
    counts.set_xlim(0, 1)
    counts.set_yscale("log")
    counts.set_ylabel("Voxels", fontsize=7)
    counts.set_xlabel("Lesion probability")


def limits_words() -> str:
    """How the limits of agreement are drawn."""
    return f"Full line: bias; dashed: bias ± {LIMITS} standard deviations."
