from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bids_scseg.measure.evaluation import Comparison
from bids_scseg.measure.statistics import Interval, PairedTest
from bids_scseg.measure.trials import TrialSummary
from bids_scseg.report.experiment import (
    ArmCost,
    ArmLabel,
    ExperimentPage,
    RunLine,
    lead,
    write_experiment_page,
)

NAN = float("nan")


def interval(mean: float, *, width: float = 0.1) -> Interval:
    return Interval(mean=mean, low=mean - width, high=mean + width, n=20, subjects=10)


def summary(
    arm: str, f1: float, *, p: float | None = None, setting: str = "T2Sag", reason: str = ""
) -> TrialSummary:
    comparisons = {}
    if p is not None:
        test = PairedTest(n=10, zeros=0, mean_difference=0.1, median_difference=0.1, p=p, reason=reason)
        comparisons["f1"] = Comparison(
            baseline="base", prediction=arm, metric="f1", test=test, p_holm=p, difference=interval(0.1),
            images=20, undefined=0,
        )  # fmt: skip
    lonely = Interval(mean=0.3, low=NAN, high=NAN, n=1, subjects=1, reason="one subject only")
    return TrialSummary(
        arm=arm, setting=setting, seeds=(0, 1), images=12, lesion_free=2, undefined={"f1": 4},
        metrics={"f1": interval(f1), "dice": lonely}, by_seed={"f1": (f1, NAN), "dice": (0.3,)},
        comparisons=comparisons,
    )  # fmt: skip


def page(*summaries: TrialSummary, **changes) -> ExperimentPage:
    facts = {
        "title": "Arms <script>alert(1)</script>",
        "arms": (
            ArmLabel(name="base", title="Baseline", paper={"f1": 0.564, "dice": 0.441}),
            ArmLabel(name="new", title="New <i>arm</i>", paper={"f1": 0.603}),
        ),
        "baseline": "base",
        "summaries": summaries,
        "settings": {"T2Sag": "T2Sag alone", "all": "everything"},
        "published": "T2Sag",
        "runs": (
            RunLine(arm="base", seed=0, seconds=90, parameters=12345, sequences=("T2Sag",),
                    thresholds={"T2Sag": "probability 0.5"}, log=((1, 1.0), (2, 0.5))),
        ),
        "notes": ("Synthetic & so on.",),
    }  # fmt: skip
    return ExperimentPage(**{**facts, **changes})


def written(tmp_path: Path, shown: ExperimentPage) -> str:
    write_experiment_page(tmp_path / "report.html", shown)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_escapes_and_fetches_nothing(tmp_path: Path) -> None:
    html = written(tmp_path, page(summary("base", 0.5), summary("new", 0.6, p=0.01)))
    assert "<script>alert" not in html
    assert "New &lt;i&gt;arm&lt;/i&gt;" in html
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    assert html.count("data:image/webp") == 3  # scores, differences, training


def test_numbers_stand_with_intervals_beside_the_papers(tmp_path: Path) -> None:
    html = written(tmp_path, page(summary("base", 0.5), summary("new", 0.6, p=0.0004)))
    text = re.sub(r"<[^>]+>", " ", html)
    assert "0.600\u00a0[0.500, 0.700]" in text
    assert "0.603" in text
    assert "+0.100\u00a0[+0.000, +0.200]" in text
    assert "&lt; 0.001" in html
    assert "0.300 (one subject only)" in text
    assert "4 of 24" in text


def test_arms_that_were_not_given_the_same_images_are_told(tmp_path: Path) -> None:
    alike = page(summary("base", 0.5), summary("new", 0.6))
    assert "do not have the same images" not in written(tmp_path, alike)
    fewer = page(summary("base", 0.5), replace(summary("new", 0.6), images=9))
    assert "do not have the same images (Baseline 12, New &lt;i&gt;arm&lt;/i&gt; 9)" in written(
        tmp_path, fewer
    )


def test_costs_stand_beside_the_scores_of_their_setting(tmp_path: Path) -> None:
    costs = {
        "base": ArmCost(parameters=12345, flops=6_410_000_000, seconds={"T2Sag": 1.25}),
        "new": ArmCost(parameters=678),
    }
    summaries = (summary("base", 0.5), summary("new", 0.6), summary("base", 0.5, setting="all"))
    html = written(tmp_path, page(*summaries, costs=costs))
    rows = re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html.split("GFLOPs a patch")[1])).strip()
    assert rows.startswith("Seconds a case Baseline 12\u202f345 6.41 1.25 New &lt;i&gt;arm&lt;/i&gt; 678 – –")
    assert html.count("GFLOPs a patch") == 2
    assert "GFLOPs" not in written(tmp_path, page(*summaries, costs={"new": costs["new"]}))


def test_published_values_stand_beside_their_own_setting_only(tmp_path: Path) -> None:
    html = written(tmp_path, page(summary("base", 0.5, setting="all"), summary("new", 0.6, setting="all")))
    assert "0.603" not in html
    assert "paper" not in html.split("<main>")[1].lower().replace("var(--paper)", "")


def test_the_first_sentence_says_who_differs() -> None:
    clear = page(summary("base", 0.5), summary("new", 0.6, p=0.01))
    assert "New <i>arm</i> (+0.100) differs in F1" in lead(clear)
    unclear = page(summary("base", 0.5), summary("new", 0.6, p=0.2))
    assert "Given T2Sag, no difference in F1 from the baseline was shown (Holm, 0.05)." in lead(unclear)
    assert "tested:" not in lead(unclear)


def test_arms_that_could_not_be_tested_are_not_said_to_be_alike() -> None:
    few = "3 of 3 pairs differ; below 6 no p can fall under 0.05"
    untested = summary("new", 0.6, p=math.nan, reason=few)
    said = lead(page(summary("base", 0.5), untested))
    assert said.endswith(f"Given T2Sag, not tested: New <i>arm</i> ({few}).")
    said = lead(page(summary("base", 0.5), untested, summary("third", 0.6, p=0.01)))
    assert said.endswith(
        f"third (+0.100) differs in F1 from the baseline (Holm, 0.05). Not tested: New <i>arm</i> ({few})."
    )


@pytest.mark.parametrize("runs", [(), None])
def test_an_empty_experiment_has_a_page(tmp_path: Path, runs) -> None:
    changes = {} if runs is None else {"runs": runs}
    html = written(tmp_path, page(missing=("base:0", "new:0"), **changes))
    assert "No run is finished yet" in html
    assert "2 runs of this experiment are not finished" in html
