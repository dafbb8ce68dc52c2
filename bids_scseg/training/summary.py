"""What training data hold, for people to check before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_scseg.training.augment import SPACING_MM
from bids_scseg.training.cases import TrainingCase

#: Lists of names in a run's summary; a bundle is handed on, and says no more than how many.
NAMED = ("left out", "several")


def summarize(cases: Sequence[TrainingCase], *, spacing_mm: float = SPACING_MM) -> dict[str, object]:
    """Subjects, sessions, sequences, lesions and volumes of some cases.

    Parameters
    ----------
    cases
        May be none.
    spacing_mm
        Voxel size of the prepared grid.

    Returns
    -------
    dict
        Plain data. ``available`` counts cases by sequence, ``lengths`` are slices along S-I,
        ``lesion volume mm3`` has the total and the smallest, median and largest lesion (None without any).
    """
    voxels = [case.lesion_voxels for case in cases]
    sizes = np.concatenate([counts[counts > 0] for counts in voxels]) if voxels else np.zeros(0, int)
    volumes = sizes * spacing_mm**3
    names = cases[0].sequences if cases else ()
    return {
        "cases": len(cases),
        "subjects": len({case.subject for case in cases}),
        "sessions": len({(case.subject, case.session) for case in cases}),
        "available": {name: int(sum(case.available[n] for case in cases)) for n, name in enumerate(names)},
        "without lesions": int(sum(not counts.any() for counts in voxels)),
        "lesions": int(sizes.size),
        "lesion voxels": int(sizes.sum()),
        "lesion volume mm3": {
            "total": round(float(volumes.sum()), 1),
            **{
                key: round(float(of(volumes)), 2) if sizes.size else None
                for key, of in (("smallest", np.min), ("median", np.median), ("largest", np.max))
            },
        },
        "lengths": sorted(case.label.shape[2] for case in cases),
    }


def counted(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary for others: how many, where it has names of subjects and sessions."""
    return {key: len(value) if key in NAMED else value for key, value in summary.items()}


def describe(summary: Mapping[str, Any], *, title: str) -> str:
    """A summary in a few lines of text."""
    if not summary["cases"]:
        return f"{title}: no case"
    volume, lengths = summary["lesion volume mm3"], summary["lengths"]
    spread = f" (each {volume['smallest']} to {volume['largest']} mm3, median {volume['median']})"
    spread = spread if summary["lesions"] else ""
    counts = ", ".join(f"{name} {count}" for name, count in summary["available"].items())
    return "\n".join(
        [
            f"{title}: {summary['cases']} cases, {summary['sessions']} sessions of {summary['subjects']} "
            f"subjects, {lengths[0]} to {lengths[-1]} slices long",
            f"  cases by sequence: {counts}",
            f"  {summary['lesions']} lesions, {volume['total']} mm3 in all{spread}; "
            f"{summary['without lesions']} cases without any",
        ]
    )
