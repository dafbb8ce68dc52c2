"""Changes over time, as the cohort's page holds them for its scripts: plain data, every number once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bids_scseg.measure.changes import CohortChanges
from bids_scseg.measure.longitudinal import FATES
from bids_scseg.report.tables import as_number, missing

#: Significant digits of embedded numbers: finer than a table shows.
DIGITS = 4
#: Columns of the table of pairs that the page shows, by their place in a row of the data.
PAIR_NUMBERS = (
    "days", "lesion_volume_change_mm3", "lesion_volume_change_ci_low_mm3",
    "lesion_volume_change_ci_high_mm3", "lesion_volume_z", "lesion_volume_change_mm3_per_year",
    *(fate.replace(" ", "_") for fate in FATES), "new_beyond_noise",
)  # fmt: skip
PAIR_TEXTS = ("state", "reason", "alignment", "sequences_differ")
LESION_NUMBERS = (
    "track", "volume_before_mm3", "volume_after_mm3", "volume_change_mm3", "volume_change_sd_mm3", "z",
    "other_probability",
)  # fmt: skip
LESION_TEXTS = ("fate", "lesions_before", "lesions_after", "level", "column", "sequences_differ")


def trajectory_data(changes: CohortChanges | None, labels: Sequence[str]) -> dict[str, object]:
    """What the page's scripts need of the changes.

    Parameters
    ----------
    changes
        Of the cohort; None if they were not looked for.
    labels
        Labels of the sessions on the page, in their order there.

    Returns
    -------
    ``paths``: for each participant with several sessions its name, the numbers of its sessions on the page
    and their years since the first one (null without dates); ``pairs``: sessions by their numbers on the
    page, and what was found; ``fates``: their order. Empty lists without repeated sessions.
    """
    place = {label: number for number, label in enumerate(labels)}
    if changes is None:
        return {"paths": [], "pairs": [], "fates": list(FATES)}
    lesions = [{str(key): value for key, value in row.items()} for row in changes.lesions.to_dict("records")]
    pairs = [{str(key): value for key, value in row.items()} for row in changes.pairs.to_dict("records")]
    return {
        "fates": list(FATES),
        "paths": [
            {
                "participant": participant,
                "sessions": [place[label] for label, _ in path if label in place],
                "years": [years for label, years in path if label in place],
            }
            for participant, path in changes.trajectories.items()
        ],
        "pairs": [_pair(row, lesions, place) for row in pairs],
    }


def label_of(row: Mapping[str, object]) -> str:
    """Label of a row of the session table."""
    return "_".join(str(row[key]) for key in ("participant_id", "session_id") if not missing(row[key]))


def _pair(
    row: Mapping[str, object], lesions: Sequence[Mapping[str, object]], place: Mapping[str, int]
) -> dict[str, object]:
    keys = ("participant_id", "session_before", "session_after")
    own = [lesion for lesion in lesions if all(lesion[key] == row[key] for key in keys)]
    return {
        "before": place.get(f"{row['participant_id']}_{row['session_before']}", -1),
        "after": place.get(f"{row['participant_id']}_{row['session_after']}", -1),
        **{key: _number(row[key]) for key in PAIR_NUMBERS},
        **{key: _text(row[key]) for key in PAIR_TEXTS},
        "lesions": [
            {
                **{key: _number(lesion[key]) for key in LESION_NUMBERS},
                **{key: _text(lesion[key]) for key in LESION_TEXTS},
                "beyond": None if missing(lesion["beyond_noise"]) else bool(lesion["beyond_noise"]),
            }
            for lesion in own
        ],
    }


def _number(value: object) -> float | int | None:
    plain = as_number(value)
    if plain is None:
        return None
    short = float(f"{plain:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _text(value: object) -> str:
    return "" if missing(value) else str(value)


def summary(changes: CohortChanges | None) -> str:
    """What was compared and found, in a sentence; empty without repeated sessions."""
    if changes is None or not len(changes.pairs):
        return ""
    table = changes.pairs
    compared = table[table["state"] == "compared"]
    text = (
        f"{_plural(len(table), 'pair')} of sessions of {_plural(len(changes.trajectories), 'participant')}: "
        f"lesions were matched in {len(compared)}"
    )
    sums = {fate: int(compared[fate.replace(" ", "_")].sum()) for fate in FATES}
    counts = [f"{count} {fate}" for fate, count in sums.items() if count]
    left = len(table) - len(compared)
    text += f" ({', '.join(counts)})." if counts else "."
    return text + (f" {_plural(left, 'pair')} could not be compared lesion by lesion." if left else "")


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
