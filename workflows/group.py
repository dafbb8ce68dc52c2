"""The group level: the cohort's tables and page, from the outputs of the participant level alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bids_scseg.bids.write import safe_join, write_json, write_tsv
from bids_scseg.errors import MissingInputError
from bids_scseg.measure.cohort import CohortTables, SessionOutputs, build
from bids_scseg.report.group import write_group_page
from bids_scseg.workflows.status import read_outcomes

LABEL = re.compile(r"sub-(?P<subject>[A-Za-z0-9+]+)(_ses-(?P<session>[A-Za-z0-9+]+))?")
PHENOTYPE = "phenotype/spinal_cord_lesions"
MEASUREMENT = {
    "MeasurementToolMetadata": {
        "Description": "Spinal cord lesions by automatic segmentation; one row per participant"
    }
}


def find_outputs(out: Path) -> list[SessionOutputs]:
    """What the participant level left in an output folder, one entry per session that it logged.

    Raises
    ------
    MissingInputError
        If there is nothing.
    """
    found = []
    for outcome in read_outcomes(out):
        match = LABEL.fullmatch(str(outcome["label"]))
        if match is None:
            continue
        subject, session = match["subject"], match["session"]
        anat = safe_join(
            out, "/".join(filter(None, [f"sub-{subject}", session and f"ses-{session}", "anat"]))
        )
        summary = anat / f"{outcome['label']}_summary.json"
        tables = sorted(anat.glob(f"{outcome['label']}_*seg-lesions_dseg.tsv"))
        found.append(
            SessionOutputs(
                subject=subject,
                session=session,
                lesions=tables[0] if tables else None,
                summary=summary if summary.is_file() else None,
                log=safe_join(out, f"logs/{outcome['label']}.json"),
            )
        )
    if not found:
        raise MissingInputError(
            "holds no session of the participant level",
            file=out,
            expected="logs/sub-*.json",
            remedy="run the participant level first",
        )
    return found


def write_group(out: Path, *, facts: Mapping[str, str]) -> CohortTables:
    """Build and write the cohort's tables, data dictionaries and page.

    Parameters
    ----------
    out
        Output folder of the participant level.
    facts
        Name to value, shown on the page.
    """
    cohort = build(find_outputs(out))
    _table(out, "group/lesions", cohort.lesions, cohort.dictionaries["lesions"])
    _table(out, "group/sessions", cohort.sessions, cohort.dictionaries["sessions"])
    dictionary = {**MEASUREMENT, **cohort.dictionaries["participants"]}
    _table(out, PHENOTYPE, cohort.participants, dictionary)
    for participant, rows in cohort.sessions.groupby("participant_id"):
        if rows["session_id"].notna().all():
            columns = ["session_id", *(c for c in rows.columns if c not in ("participant_id", "session_id"))]
            known = cohort.dictionaries["sessions"]
            own = {name: known[name] for name in columns if name in known}
            _table(out, f"{participant}/{participant}_sessions", rows[columns], own)
    write_group_page(
        out / "group.html",
        sessions=_with_reports(out, cohort.sessions[cohort.sessions["state"] == "done"]),
        lesions=cohort.lesions,
        failures=_failures(out),
        facts=facts,
    )
    return cohort


def _table(out: Path, stem: str, frame: pd.DataFrame, dictionary: Mapping[str, object]) -> None:
    rows = [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
    write_json(out, f"{stem}.json", dictionary)
    write_tsv(out, f"{stem}.tsv", rows, columns=list(frame.columns))


def _with_reports(out: Path, sessions: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for row in sessions.to_dict("records"):
        known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
        label = "_".join(str(known[key]) for key in ("participant_id", "session_id") if known.get(key))
        rows.append({**known, "label": label, "report": _report(out, label)})
    return rows


def _failures(out: Path) -> list[dict[str, object]]:
    names = ("label", "state", "step", "cause", "remedy")
    return [
        {**{name: outcome.get(name) for name in names}, "report": _report(out, str(outcome["label"]))}
        for outcome in read_outcomes(out)
        if outcome.get("state") != "done"
    ]


def _report(out: Path, label: str) -> str:
    return f"{label}.html" if (out / f"{label}.html").is_file() else ""
