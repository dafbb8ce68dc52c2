"""The page of a cohort."""

from __future__ import annotations

import pandas as pd
import pytest

from bids_scseg.report.group import as_rows, histogram, label_of, nice_step, write_group_page

EVIL = "<script>alert(1)</script>"


def row(number: int, **changes: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "participant_id": f"sub-{number:02d}",
        "session_id": None,
        "report": f"sub-{number:02d}.html",
        "lesion_count": number % 3,
        "lesion_volume_mm3": 50.0 * (number % 3),
        "lesion_load": 0.01,
        "examined_length_mm": 200.0,
        "sequences": "T2Sag+STIR",
        "model": "m",
        "model_sha256": "a" * 64,
        "threshold": 0.5,
        "version": "0.1.0",
        "flags": None,
    }
    return {**facts, **changes}


def page(path) -> str:
    return path.read_text(encoding="utf-8")


def test_cohort_page(tmp_path):
    sessions = [row(n) for n in range(1, 7)] + [row(7, flags=EVIL, report="javascript:alert(1)")]
    failures = [{"label": "sub-08", "state": "failed", "step": "cord", "cause": EVIL, "remedy": "Look."}]
    write_group_page(
        tmp_path / "group.html", sessions=sessions, lesions=[{"volume_mm3": 3.0}], failures=failures,
        facts={"title": "demo", "dataset": EVIL},
    )  # fmt: skip
    text = page(tmp_path / "group.html")
    assert "<script>alert" not in text and "javascript:" not in text
    assert "http:" not in text and "https:" not in text
    assert 'href="sub-01.html"' in text and "T2Sag, STIR" in text
    assert (
        "7 sessions of 7 participants were processed; the model marked 7 lesions, and none in 2 sessions"
        in text
    )
    assert "1 session ended without a result" in text and "Look." in text
    assert text.count("<svg") == 4 and text.count('aria-label="Histogram') == 4
    assert "Sessions of different" not in text


@pytest.mark.parametrize(
    ("key", "other", "words"),
    [("model", "n", "models"), ("model_sha256", "b" * 64, "weights"), ("threshold", 0.4, "thresholds"),
     ("version", "0.2.0", "software versions")],
)  # fmt: skip
def test_mixed_sessions_are_a_serious_warning(tmp_path, key, other, words):
    write_group_page(tmp_path / "g.html", sessions=[row(1), row(2, **{key: other})])
    assert f"Sessions of different {words}" in page(tmp_path / "g.html")


def test_empty_cohort(tmp_path):
    write_group_page(tmp_path / "g.html", sessions=[])
    assert "No session has a result yet." in page(tmp_path / "g.html")


def test_frames_with_missing_values(tmp_path):
    frame = pd.DataFrame([row(1), row(2, lesion_count=None, lesion_load=None)])
    frame["lesion_count"] = frame["lesion_count"].astype("Int64")
    write_group_page(tmp_path / "g.html", sessions=frame)
    assert "In 1 session no cord was examined." in page(tmp_path / "g.html")
    assert len(as_rows(frame)) == 2
    with pytest.raises(TypeError, match="iterable of mappings"):
        as_rows(3)


def test_labels():
    assert label_of({"participant_id": "sub-1", "session_id": "ses-2"}) == "sub-1_ses-2"
    assert label_of({"label": "sub-1"}) == "sub-1"


def test_histogram_counts_every_value():
    chart = histogram([0, 0, 1, 3], name="x", unit="sessions", whole=True)
    assert [bar.text for bar in chart.bars] == ["0: 2 sessions", "1: 1 sessions", "3: 1 sessions"]
    assert chart.most == 2 and "median 0.5" in chart.alt
    # 0…100 in steps of 10 (100 / 12 bins rounded up to 1, 2, 5 times ten): the largest value is inside.
    chart = histogram([0.0, 99.0, 100.0], name="x", unit="lesions")
    assert [bar.text for bar in chart.bars] == ["0–10: 1 lesions", "90–100: 1 lesions", "100–110: 1 lesions"]
    assert histogram([0.0, 0.0], name="x", unit="y").most == 2


@pytest.mark.parametrize(("least", "step"), [(8.3, 10), (0.21, 0.5), (1.0, 1), (5.1, 10), (0.02, 0.02)])
def test_steps_are_round(least, step):
    assert nice_step(least) == pytest.approx(step)
