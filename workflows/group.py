"""The group level: the cohort's tables and page, from the outputs of the participant level."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pandas as pd

from bids_scseg import files
from bids_scseg.bids.masks import is_correction
from bids_scseg.bids.write import safe_join, write_json, write_text, write_tsv
from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.measure.changes import CHANGE_COLUMNS, PAIR_COLUMNS, CohortChanges
from bids_scseg.measure.cohort import CohortTables, SessionOutputs, build, measured_columns
from bids_scseg.measure.covariates import Covariates, read_covariates
from bids_scseg.measure.ratings import RATINGS_FILE, read_ratings
from bids_scseg.measure.schema import data_dictionary
from bids_scseg.report.group import GroupPage, write_group_page
from bids_scseg.report.session import thumbnail_name
from bids_scseg.workflows.longitudinal import compare_sessions
from bids_scseg.workflows.status import read_outcomes

LABEL = re.compile(r"sub-(?P<subject>[A-Za-z0-9+]+)(_ses-(?P<session>[A-Za-z0-9+]+))?")
#: Tells this folder's cohort from others, wherever it lies; made once.
IDENTITY = "group/.identity"
IDENTITY_TEXT = re.compile(r"[0-9a-f]{32}")
PHENOTYPE = "phenotype/spinal_cord_lesions"
MEASUREMENT = {
    "MeasurementToolMetadata": {
        "Description": "Spinal cord lesions by automatic segmentation, with readers' corrections where "
        "there are any; one row per participant"
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
        cords = sorted(anat.glob(f"{outcome['label']}_*label-SC_*mask.json"))
        tables = sorted(anat.glob(f"{outcome['label']}_*seg-lesions_dseg.tsv"))
        found.append(
            SessionOutputs(
                subject=subject,
                session=session,
                lesions=tables[0] if tables else None,
                summary=summary if summary.is_file() else None,
                log=safe_join(out, f"logs/{outcome['label']}.json"),
                cords=tuple(path for path in cords if not is_correction(path.name)),  # those are readers' own
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


def write_group(
    out: Path,
    *,
    dataset: Path | None = None,
    facts: Mapping[str, str],
    workers: int = 1,
    follow_links: bool = False,
) -> CohortTables:
    """Build and write the cohort's tables, data dictionaries and page.

    Parameters
    ----------
    out
        Output folder of the participant level; ``group/ratings.tsv`` in it is read where it is.
    dataset
        The raw dataset, for covariates of participants and sessions; None without it.
    facts
        Name to value, shown on the page.
    workers
        Pairs of sessions of one participant that are aligned at once.
    follow_links
        Whether tables of the raw dataset may be links to places outside of it.
    """
    outputs = find_outputs(out)
    covariates = Covariates()
    if dataset is not None:
        people = {f"sub-{item.subject}" for item in outputs}
        covariates = read_covariates(
            dataset, people, taken=measured_columns(outputs), follow_links=follow_links
        )
    ratings = read_ratings(safe_join(out, RATINGS_FILE), {item.label for item in outputs})
    cohort = build(outputs, covariates=covariates, ratings=ratings)
    changes = compare_sessions(out, cohort, outputs, dataset=dataset, workers=workers)
    _write_tables(out, cohort)
    _write_changes(out, changes)
    labels = [item.label for item in outputs]
    write_group_page(
        out / "group.html",
        GroupPage(
            cohort=cohort,
            reports={label: f"{label}.html" for label in labels if (out / f"{label}.html").is_file()},
            thumbnails=_thumbnails(out, labels),
            failures=_failures(out, cohort),
            facts=facts,
            identity=keep_identity(out),
            changes=changes,
        ),
    )
    return cohort


def keep_identity(out: Path) -> str:
    """What the browser keeps the ratings of this folder's cohort under: random, made by the first run.

    Not the folder's place, which is ``/out`` in every container. A file that does not hold one is replaced.
    """
    with suppress(DataError):
        known = files.read_text(safe_join(out, IDENTITY), max_bytes=100).strip()
        if IDENTITY_TEXT.fullmatch(known):
            return known
    made = secrets.token_hex(16)
    write_text(out, IDENTITY, f"{made}\n")
    return made


def _write_tables(out: Path, cohort: CohortTables) -> None:
    for name in ("lesions", "sessions", "summary", "comparisons"):
        _table(out, f"group/{name}", getattr(cohort, name), cohort.dictionaries[name])
    dictionary = {**MEASUREMENT, **cohort.dictionaries["participants"]}
    _table(out, PHENOTYPE, cohort.participants, dictionary)
    for participant, rows in cohort.sessions.groupby("participant_id"):
        if rows["session_id"].notna().all():
            columns = ["session_id", *(c for c in rows.columns if c not in ("participant_id", "session_id"))]
            known = cohort.dictionaries["sessions"]
            own = {name: known[name] for name in columns if name in known}
            _table(out, f"{participant}/{participant}_sessions", rows[columns], own)


def _write_changes(out: Path, changes: CohortChanges) -> None:
    for name, frame, columns in (
        ("lesion_changes", changes.lesions, CHANGE_COLUMNS),
        ("session_changes", changes.pairs, PAIR_COLUMNS),
    ):
        _table(out, f"group/{name}", frame, data_dictionary(columns))


def _table(out: Path, stem: str, frame: pd.DataFrame, dictionary: Mapping[str, object]) -> None:
    rows = [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
    write_json(out, f"{stem}.json", dictionary)
    write_tsv(out, f"{stem}.tsv", rows, columns=list(frame.columns))


def _thumbnails(out: Path, labels: list[str]) -> dict[str, bytes]:
    paths = {label: out / "figures" / thumbnail_name(label) for label in labels}
    return {label: path.read_bytes() for label, path in paths.items() if path.is_file()}


def _failures(out: Path, cohort: CohortTables) -> list[dict[str, object]]:
    """Sessions without a result: what their log says, else what the tables say."""
    logs = {str(outcome["label"]): outcome for outcome in read_outcomes(out)}
    rows = []
    for row in cohort.sessions[cohort.sessions["state"] != "done"].to_dict("records"):
        parts = [str(row[key]) for key in ("participant_id", "session_id") if not pd.isna(row[key])]
        label = "_".join(parts)
        known = {key: None if pd.isna(row[key]) else row[key] for key in ("state", "cause", "remedy")}
        rows.append({"label": label, "step": logs.get(label, {}).get("step"), **known})
    return rows
