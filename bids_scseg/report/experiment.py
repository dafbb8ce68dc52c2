"""The page of an experiment: arms against the baseline with their uncertainty, beside published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from bids_scseg.measure.statistics import Interval
from bids_scseg.measure.trials import TrialSummary
from bids_scseg.report import canvas, encode, pages
from bids_scseg.report.tables import ABSENT, Cell, Header, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = (("f1", "Lesion-wise F1"), ("dice", "Dice"))
MINUS, THIN = "\u2212", "\u00a0"
ROW_IN = 0.42  # height of an arm in a figure, inches
SMALL_P = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmLabel:
    """How an arm is called, and its published values (metric to value; may be empty)."""

    name: str
    title: str
    paper: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCost:
    """What an arm's network costs.

    Attributes
    ----------
    parameters
        Number of weights.
    flops
        Operations of one patch, all sequences present; None: not recorded.
    seconds
        Setting to median seconds per test case, prediction alone; empty: not recorded.
    """

    parameters: int
    flops: int | None = None
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunLine:
    """One run for the page.

    Attributes
    ----------
    arm, seed
        Which.
    seconds, parameters
        Of its training; of its network.
    sequences
        That the network knows.
    thresholds
        Setting to threshold, smallest volume and their source in words.
    log : (n, 2)
        Iteration and loss.
    """

    arm: str
    seed: int
    seconds: float
    parameters: int
    sequences: tuple[str, ...]
    thresholds: Mapping[str, str]
    log: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExperimentPage:
    """What the page says.

    Attributes
    ----------
    title
        Heading.
    arms
        In the order of the tables.
    baseline
        Name of the arm that the others are compared with.
    summaries
        Of all settings and arms.
    settings
        Name to the sequences given, in words.
    published
        Setting that published values belong to.
    runs
        Finished ones.
    costs
        Of the arms that have finished runs, by name.
    missing
        Labels of runs that are wanted and not finished.
    facts
        (what, value) pairs: what holds for all runs, and what single arms have of their own.
    notes
        Paragraphs: what the data are, what they can show.
    date, version
        Of the page; of the program.
    """

    title: str
    arms: tuple[ArmLabel, ...]
    baseline: str
    summaries: tuple[TrialSummary, ...]
    settings: Mapping[str, str]
    published: str = ""
    runs: tuple[RunLine, ...] = ()
    costs: Mapping[str, ArmCost] = field(default_factory=lambda: MappingProxyType({}))
    missing: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    date: str = ""
    version: str = ""

    def label(self, name: str) -> ArmLabel:
        """The label of an arm; an unknown one is called by its name."""
        return next((arm for arm in self.arms if arm.name == name), ArmLabel(name=name, title=name))

    def of(self, setting: str) -> list[TrialSummary]:
        """Summaries of a setting in the order of the arms."""
        order = [arm.name for arm in self.arms]
        here = [item for item in self.summaries if item.setting == setting]
        return sorted(here, key=lambda item: order.index(item.arm) if item.arm in order else len(order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One setting on the page: tables and figures, ready for the template."""

    key: str
    title: str
    lead: str
    main: tuple[Table, ...]
    details: Table
    figures: tuple[Shown, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure ready for the template."""

    key: str
    title: str
    caption: str
    uri: str
    alt: str
    width: int
    height: int
    href: str = ""


def write_experiment_page(out_html: Path, page: ExperimentPage) -> None:
    """Write the page; it holds its figures and needs no network.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    parts = [_part(page, name) for name in page.settings if page.of(name)]
    contents = [
        {"id": "summary", "text": "Summary", "sub": False},
        *({"id": part.key, "text": part.title, "sub": False} for part in parts),
        {"id": "runs", "text": "Runs", "sub": False},
        {"id": "method", "text": "Method", "sub": False},
    ]
    rows = tuple((_text(key), _text(value)) for key, value in page.facts.items())
    pages.write_page(
        out_html,
        pages.render_page(
            "experiment.html",
            {
                "page": page,
                "parts": parts,
                "contents": contents,
                "lead": lead(page),
                "runs": _runs(page),
                "curves": _curves(page),
                "facts": Table(headers=(Header(text="What"), Header(text="Value")), rows=rows),
                "version": page.version,
            },
        ),
    )


def lead(page: ExperimentPage) -> str:
    """The first sentences: how much there is, and whether a difference from the baseline was shown."""
    seeds = {run.seed for run in page.runs}
    words = (
        f"{len({run.arm for run in page.runs})} arms, {len(seeds)} seed{'s' * (len(seeds) != 1)}, "
        f"{len(page.runs)} finished runs."
    )
    for name in page.settings:
        compared = [item for item in page.of(name) if item.comparisons.get("f1") is not None]
        if compared:
            words += f" Given {name}, {_differing(page, compared)}"
    return words


def _differing(page: ExperimentPage, compared: Sequence[TrialSummary]) -> str:
    """Which arms differ in F1; those of which nothing could be tested are never said to be alike."""
    against = [(page.label(item.arm).title, item.comparisons["f1"]) for item in compared]
    tested = [(title, found) for title, found in against if not math.isnan(found.p_holm)]
    clear = [f"{title} ({_signed(found.difference.mean)})" for title, found in tested if found.p_holm < 0.05]
    left = [
        f"{title} ({found.test.reason or 'no p'})" for title, found in against if math.isnan(found.p_holm)
    ]
    words = []
    if clear:
        words.append(
            f"{', '.join(clear)} differ{'s' * (len(clear) < 2)} in F1 from the baseline (Holm, 0.05)."
        )
    elif tested:
        words.append("no difference in F1 from the baseline was shown (Holm, 0.05).")
    if left:
        words.append(f"{'Not' if words else 'not'} tested: {', '.join(left)}.")
    return " ".join(words)


# -- tables ----------------------------------------------------------------------------------------


def _part(page: ExperimentPage, setting: str) -> Part:
    summaries = page.of(setting)
    first = summaries[0]
    text = (
        f"Models were given {page.settings[setting]}. {first.images} test images per seed, "
        f"{first.lesion_free} of them without lesions; F1 and Dice of those are undefined and in no mean."
    )
    text += _unequal(page, summaries)
    figures = [_dots(page, setting, summaries)]
    if any(item.comparisons for item in summaries):
        figures.append(_differences(page, setting, summaries))
    return Part(
        key=f"setting-{list(page.settings).index(setting)}",
        title=f"Given {setting}",
        lead=text,
        main=(*(_main(page, summaries, metric, word) for metric, word in METRICS), *_costs(page, summaries)),
        details=_details(page, summaries),
        figures=tuple(figures),
    )


def _unequal(page: ExperimentPage, summaries: Sequence[TrialSummary]) -> str:
    """A warning where arms could not be given the same images, as those without the anchor."""
    if len({item.images for item in summaries}) < 2:
        return ""
    counts = ", ".join(f"{page.label(item.arm).title} {item.images}" for item in summaries)
    return (
        f" The arms do not have the same images ({counts}), since some cases lack a sequence that a model "
        "needs: their means must not be compared. Differences and tests use common images only."
    )


def _main(page: ExperimentPage, summaries: Sequence[TrialSummary], metric: str, word: str) -> Table:
    published = summaries[0].setting == page.published
    compared = any(metric in item.comparisons for item in summaries)
    headers = [
        Header(text="Arm"),
        Header(
            text=f"{word} [95 %]", numeric=True, hint="Mean over images and seeds; interval over subjects"
        ),
        Header(text="per seed", numeric=True),
    ]
    if published:
        headers.append(Header(text="paper", numeric=True, hint="Other data, another scale"))
    if compared:
        headers.append(Header(text="minus baseline [95 %]", numeric=True, hint="Paired by subject"))
        headers.append(
            Header(text="p (Holm)", numeric=True, hint="Wilcoxon's signed-rank test over subjects")
        )
    rows = []
    for item in summaries:
        label, against = page.label(item.arm), item.comparisons.get(metric)
        cells = [_text(label.title), _cell(item.metrics.get(metric))]
        cells.append(_text(" ".join(_number(value) for value in item.by_seed.get(metric, ()))))
        if published:
            cells.append(_text(_number(label.paper.get(metric, math.nan))))
        if compared:
            cells.append(_cell(None if against is None else against.difference, sign=True))
            cells.append(_text(_p(None if against is None else against.p_holm)))
        rows.append(tuple(cells))
    return Table(headers=tuple(headers), rows=tuple(rows))


def _costs(page: ExperimentPage, summaries: Sequence[TrialSummary]) -> tuple[Table, ...]:
    """Weights, operations and seconds of the arms; no table where runs were judged without them."""
    known = {item.arm: page.costs[item.arm] for item in summaries if item.arm in page.costs}
    if all(cost.flops is None and not cost.seconds for cost in known.values()):
        return ()
    headers = (
        Header(text="Arm"),
        Header(text="Weights", numeric=True),
        Header(
            text="GFLOPs a patch",
            numeric=True,
            hint="Convolutions and matrix products, all sequences present",
        ),
        Header(
            text="Seconds a case", numeric=True, hint="Median; prediction alone, on the machine of the test"
        ),
    )
    rows = []
    for name, cost in known.items():
        seconds = cost.seconds.get(summaries[0].setting)
        rows.append(
            (
                _text(page.label(name).title), _text(_grouped(cost.parameters)),
                _text(ABSENT if cost.flops is None else f"{cost.flops / 1e9:.2f}"),
                _text(ABSENT if seconds is None else f"{seconds:.2f}"),
            )
        )  # fmt: skip
    return (Table(headers=headers, rows=tuple(rows)),)


DETAILS = (
    ("sensitivity", "Sensitivity"),
    ("precision", "Precision"),
    ("pooled_sensitivity", "Pooled sensitivity"),
    ("pooled_precision", "Pooled precision"),
    ("pooled_dice", "Pooled Dice"),
    ("false_positives_lesion_free", "False lesions where there is none"),
    ("specificity", "Specificity"),
)


def _details(page: ExperimentPage, summaries: Sequence[TrialSummary]) -> Table:
    headers = (
        Header(text="Arm"),
        *(Header(text=word, numeric=True) for _, word in DETAILS),
        Header(text="images", numeric=True, hint="Test images per seed"),
        Header(text="undefined F1", numeric=True, hint="Of images times seeds"),
    )
    rows = tuple(
        (
            _text(page.label(item.arm).title),
            *(_cell(item.metrics.get(metric)) for metric, _ in DETAILS),
            _text(item.images),
            _text(f"{item.undefined.get('f1', 0)} of {item.images * len(item.seeds)}"),
        )
        for item in summaries
    )
    return Table(headers=headers, rows=rows)


def _runs(page: ExperimentPage) -> Table:
    headers = (
        Header(text="Arm"), Header(text="Seed", numeric=True), Header(text="Training, min", numeric=True),
        Header(text="Weights", numeric=True), Header(text="Sequences"), Header(text="Chosen on validation"),
    )  # fmt: skip
    rows = tuple(
        (
            _text(page.label(run.arm).title), _text(run.seed), _text(f"{run.seconds / 60:.1f}"),
            _text(_grouped(run.parameters)), _text(", ".join(run.sequences)),
            _text("; ".join(f"{name}: {words}" for name, words in run.thresholds.items())),
        )
        for run in page.runs
    )  # fmt: skip
    return Table(headers=headers, rows=rows)


def _grouped(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _text(value: object) -> Cell:
    return Cell(text=str(value))


def _cell(interval: Interval | None, *, sign: bool = False) -> Cell:
    """Mean and interval; why there is none as a hint in the text."""
    if interval is None or math.isnan(interval.mean):
        return Cell(text=ABSENT)
    show = _signed if sign else _number
    ends = (
        f" ({interval.reason})"
        if math.isnan(interval.low)
        else f" [{show(interval.low)}, {show(interval.high)}]"
    )
    return Cell(text=f"{show(interval.mean)}{ends}".replace(" [", f"{THIN}["), sort=f"{interval.mean}")


def _number(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:.3f}".replace("-", MINUS)


def _signed(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ABSENT
    return f"< {SMALL_P}" if value < SMALL_P else f"{value:.3f}"


# -- figures ---------------------------------------------------------------------------------------


def _dots(page: ExperimentPage, setting: str, summaries: Sequence[TrialSummary]) -> Shown:
    """Mean, interval, seeds and published value of each arm."""
    sheet, axes = _rows_canvas(len(summaries))
    for ax, (metric, word) in zip(axes, METRICS, strict=True):
        for row, item in enumerate(summaries):
            found, label = item.metrics.get(metric), page.label(item.arm)
            if found is not None:
                _bar(ax, row, found, color=canvas.BLUE)
            seeds = [value for value in item.by_seed.get(metric, ()) if not math.isnan(value)]
            ax.plot(seeds, [row + 0.22] * len(seeds), "o", ms=2.6, color=canvas.MUTED, alpha=0.8)
            if metric in label.paper and setting == page.published:
                ax.plot([label.paper[metric]], [row], "D", ms=5, mfc="none", mec=canvas.VERMILION)
        _finish(ax, page, summaries, word, first=metric == METRICS[0][0])
    return _shown(
        sheet,
        key=f"dots-{setting}",
        title="Scores.",
        caption="Blue: mean with 95 % interval over subjects. Grey: the mean of each seed."
        + (
            " Orange diamond: the paper's value, on other data and at another scale."
            if setting == page.published
            else ""
        ),
        alt=f"Lesion-wise F1 and Dice of {len(summaries)} arms given {setting}",
    )


def _differences(page: ExperimentPage, setting: str, summaries: Sequence[TrialSummary]) -> Shown:
    compared = [item for item in summaries if item.comparisons]
    sheet, axes = _rows_canvas(len(compared))
    for ax, (metric, word) in zip(axes, METRICS, strict=True):
        ax.axvline(0, color=canvas.MUTED, lw=0.8)
        base = page.label(page.baseline).paper.get(metric) if setting == page.published else None
        for row, item in enumerate(compared):
            against, label = item.comparisons.get(metric), page.label(item.arm)
            if against is not None:
                _bar(ax, row, against.difference, color=canvas.BLUE)
            if base is not None and metric in label.paper:
                ax.plot([label.paper[metric] - base], [row], "D", ms=5, mfc="none", mec=canvas.VERMILION)
        _finish(ax, page, compared, f"{word}, minus baseline", first=metric == METRICS[0][0])
    return _shown(
        sheet,
        key=f"differences-{setting}",
        title="Against the baseline.",
        caption="Mean difference over subjects with its 95 % interval; orange: the paper's difference.",
        alt=f"Differences from the baseline in F1 and Dice, given {setting}",
    )


def _bar(ax: Axes, row: int, interval: Interval, *, color: str) -> None:
    if not math.isnan(interval.low):
        ax.plot([interval.low, interval.high], [row, row], "-", lw=1.6, color=color)
    ax.plot([interval.mean], [row], "o", ms=5, color=color)


def _rows_canvas(rows: int) -> tuple[canvas.Canvas, list[Axes]]:
    with canvas.styled():
        height = 0.75 + ROW_IN * max(rows, 1)
        sheet = canvas.new_canvas(9.0, height)
        return sheet, [sheet.axes(left, 0.1, 3.0, height - 0.65) for left in (2.6, 5.8)]


def _finish(
    ax: Axes, page: ExperimentPage, summaries: Sequence[TrialSummary], word: str, *, first: bool
) -> None:
    ax.set_yticks(range(len(summaries)))
    ax.set_yticklabels([page.label(item.arm).title if first else "" for item in summaries])
    ax.set_ylim(len(summaries) - 0.5, -0.5)
    ax.set_xlabel(word)
    ax.grid(axis="x", color=canvas.FAINT, lw=0.5)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _curves(page: ExperimentPage) -> Shown | None:
    """Training loss of each arm, mean over its seeds."""
    logs = {arm.name: [run.log for run in page.runs if run.arm == arm.name and run.log] for arm in page.arms}
    logs = {name: found for name, found in logs.items() if found}
    if not logs:
        return None
    colors = (
        canvas.BLACK,
        canvas.BLUE,
        canvas.VERMILION,
        canvas.GREEN,
        canvas.PURPLE,
        canvas.ORANGE,
        canvas.SKY,
    )
    with canvas.styled():
        sheet = canvas.new_canvas(9.0, 2.8)
        ax = sheet.axes(0.7, 0.15, 5.6, 2.1)
    for number, (name, found) in enumerate(logs.items()):
        length = min(len(log) for log in found)
        iterations = np.array([iteration for iteration, _ in found[0][:length]])
        loss = np.mean([[value for _, value in log[:length]] for log in found], axis=0)
        width = max(1, length // 40)
        kernel = np.ones(width) / width
        smooth = np.convolve(loss, kernel, mode="valid")
        ax.plot(
            iterations[width - 1 :], smooth, lw=1.1, label=page.label(name).title,
            color=colors[number % len(colors)], ls="-" if number < len(colors) else "--",
        )  # fmt: skip
    ax.set_xlabel("iteration")
    ax.set_ylabel("training loss")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, borderaxespad=0)
    return _shown(
        sheet, key="curves", title="Training.",
        caption="Loss over iterations, mean over seeds and smoothed. Losses of arms with an added term "
        "(distillation) hold that term.",
        alt="Training loss of each arm",
    )  # fmt: skip


def _shown(sheet: canvas.Canvas, *, key: str, title: str, caption: str, alt: str) -> Shown:
    pixels = encode.render(sheet.figure)
    height, width = pixels.shape[:2]
    return Shown(
        key=key.replace(" ", "-"), title=title, caption=caption, alt=alt,
        uri=encode.data_uri(encode.webp(pixels)), width=width, height=height,
    )  # fmt: skip
