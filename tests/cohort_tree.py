"""Output folders as the participant level leaves them, made in seconds: for tests of the group level."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bids_scseg.measure.cordmap import BIN_MM, RING_EDGES, SECTORS
from bids_scseg.measure.lesions import lesion_columns
from bids_scseg.measure.quality import quality_columns
from bids_scseg.measure.schema import to_frame
from bids_scseg.measure.session import CORD_LEVELS, session_columns
from bids_scseg.report import encode

SEQUENCES = ("T2Sag", "STIR", "T2StarAx")
CAUSES = (
    ("refused", "cord", "no cord was found in any image", "give cord masks by --derivatives"),
    (
        "failed",
        "worker process",
        "the worker was killed, most likely because memory ran out",
        "lower --nprocs",
    ),
)
COLUMNS = (("dorsal", 180.0), ("lateral left", -90.0), ("lateral right", 90.0), ("ventral", 0.0))
#: Length of a vertebral level, mm, and where C1 begins above the C2-C3 disc.
LEVEL_MM, TOP_MM = 18.0, -30.0


def make_tree(
    root: Path,
    *,
    participants: int = 20,
    sessions: int = 1,
    failed: int = 0,
    lesion_free: bool = False,
    covariates: bool = True,
    thumbnails: bool = True,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write ``root/bids`` and ``root/out``; the last ``failed`` sessions have no result.

    Returns
    -------
    Raw dataset (``participants.tsv`` and sessions tables only) and output folder.
    """
    rng = np.random.default_rng(seed)
    bids, out = root / "bids", root / "out"
    bids.mkdir(parents=True, exist_ok=True)
    people = [f"{number:03d}" for number in range(1, participants + 1)]
    facts = [_person(rng) for _ in people]
    labels = [
        (subject, f"{number}" if sessions > 1 else None, person)
        for subject, person in zip(people, facts, strict=True)
        for number in range(1, sessions + 1)
    ]
    for number, (subject, session, person) in enumerate(labels):
        if number >= len(labels) - failed:
            _write_failure(out, subject, session, number)
            continue
        _write_session(out, subject, session, person, rng, lesion_free=lesion_free, thumbnail=thumbnails)
    if covariates:
        _write_covariates(bids, people, facts, sessions)
    return bids, out


def label_of(subject: str, session: str | None) -> str:
    """``sub-X[_ses-Y]``."""
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")


def _person(rng: np.random.Generator) -> dict[str, object]:
    return {
        "age": int(rng.integers(20, 66)),
        "sex": str(rng.choice(["F", "M"], p=[0.7, 0.3])),
        "phenotype": str(rng.choice(["RRMS", "PPMS", "SPMS"], p=[0.6, 0.2, 0.2])),
        "site": str(rng.choice(["Lyon", "Oslo", "Porto"])),
    }


def _write_covariates(bids: Path, people: list[str], facts: list[dict[str, object]], sessions: int) -> None:
    lines = ["\t".join(["participant_id", *facts[0]])]
    lines += [
        "\t".join([f"sub-{who}", *map(str, known.values())]) for who, known in zip(people, facts, strict=True)
    ]
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    described = {
        "age": {"Description": "Age at inclusion", "Units": "year"},
        "site": {"Description": "Hospital"},
    }
    (bids / "participants.json").write_text(json.dumps(described), encoding="utf-8")
    for number, who in enumerate(people) if sessions > 1 else ():
        folder = bids / f"sub-{who}"
        folder.mkdir(exist_ok=True)
        rows = [f"ses-{session}\t{1 + (number + session) % 7 / 2}" for session in range(1, sessions + 1)]
        (folder / f"sub-{who}_sessions.tsv").write_text("\n".join(["session_id\tedss", *rows]) + "\n")


def _write_failure(out: Path, subject: str, session: str | None, number: int) -> None:
    state, step, cause, remedy = CAUSES[number % len(CAUSES)]
    log = {
        "label": label_of(subject, session),
        "state": state,
        "step": step,
        "cause": cause,
        "remedy": remedy,
    }
    _json(out / f"logs/{label_of(subject, session)}.json", log)


def _write_session(
    out: Path,
    subject: str,
    session: str | None,
    person: dict[str, object],
    rng: np.random.Generator,
    *,
    lesion_free: bool,
    thumbnail: bool,
) -> None:
    label = label_of(subject, session)
    folder = out / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    length = float(rng.uniform(180, 420))
    count = 0 if lesion_free else int(rng.poisson(2.0 + 2.5 * (person["phenotype"] != "RRMS")))
    lesions = [_lesion(number, length, rng) for number in range(1, count + 1)]
    text = to_frame(lesions, lesion_columns(SEQUENCES))
    folder.mkdir(parents=True, exist_ok=True)
    text.to_csv(folder / f"{label}_acq-sag_seg-lesions_dseg.tsv", sep="\t", index=False, na_rep="n/a")
    row = {**_row(lesions, length, rng), **_quality(person, length, rng)}
    unknown = {column.name for column in (*session_columns(SEQUENCES), *quality_columns(SEQUENCES))}
    assert set(row) <= unknown, set(row) - unknown
    run = {"cord_method": "builtin", "threshold": 0.5, "min_volume_mm3": 2.0}
    _json(folder / f"{label}_summary.json", {**row, "cord_map": _map(lesions, length), "run": run})
    _json(out / f"logs/{label}.json", {"label": label, "state": "done", "run": {"numerical_version": "1"}})
    (out / f"{label}.html").write_text(f"<!DOCTYPE html><title>{label}</title>", encoding="utf-8")
    if thumbnail:
        path = out / "figures" / f"{label}_desc-thumbnail_figure.webp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode.webp(_strip(lesions, length, rng), quality=70))


def _lesion(number: int, length: float, rng: np.random.Generator) -> dict[str, object]:
    column, angle = COLUMNS[int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))]
    arc = float(rng.triangular(TOP_MM, 20, TOP_MM + length))
    return {
        "index": number, "name": f"lesion-{number:02d}", "volume_mm3": float(rng.lognormal(4.2, 0.8)),
        "length_mm": float(rng.lognormal(2.2, 0.4)), "arc_length_mm": arc, "arc_origin": "C2-C3 disc",
        "arc_origin_anatomical": True, "radius_normalised": float(rng.uniform(0.2, 0.9)),
        "angle_deg": float(angle + rng.normal(0, 20)), "column": column,
        "level": CORD_LEVELS[min(int((arc - TOP_MM) / LEVEL_MM), len(CORD_LEVELS) - 1)],
        "mean_probability": float(rng.uniform(0.5, 0.95)), "max_probability": 0.97,
    }  # fmt: skip


def _row(lesions: list[dict[str, object]], length: float, rng: np.random.Generator) -> dict[str, object]:
    volume, cord = sum(float(str(lesion["volume_mm3"])) for lesion in lesions), length * 60.0
    gap = float(rng.choice([0.0, 0.0, 0.0, 0.0, 12.0]))
    row: dict[str, object] = {
        "lesion_count": len(lesions), "lesion_volume_mm3": volume, "cord_volume_mm3": cord,
        "lesion_load": volume / cord, "cord_length_mm": length, "examined_length_mm": length - gap,
        "not_examined_mm": gap, "near_threshold_volume_mm3": float(rng.uniform(1, 30)),
        "near_threshold_mass": float(rng.beta(2, 60)), "threshold": 0.5, "model": "cord-lesion",
        "model_sha256": "a" * 64, "version": "0.1.0", "anchor": "T2Sag", "sequences": "+".join(SEQUENCES),
        "arc_origin": "C2-C3 disc", "arc_origin_anatomical": True,
        "flags": "STIR: slab stays where its header says" if rng.random() < 0.15 else None,
    }  # fmt: skip
    for number, level in enumerate(CORD_LEVELS):
        if (number + 1) * LEVEL_MM > length:
            break
        own = [float(str(lesion["volume_mm3"])) for lesion in lesions if lesion["level"] == level]
        row |= {
            f"{level}_lesion_count": len(own), f"{level}_lesion_volume_mm3": sum(own),
            f"{level}_cord_volume_mm3": LEVEL_MM * 60, f"{level}_lesion_load": sum(own) / (LEVEL_MM * 60),
        }  # fmt: skip
    return row


def _quality(person: dict[str, object], length: float, rng: np.random.Generator) -> dict[str, object]:
    vendor = {"Lyon": "Siemens", "Oslo": "Philips", "Porto": "GE"}[str(person["site"])]
    row: dict[str, object] = {
        "manufacturer": vendor, "scanner_model": f"{vendor} X",
        "field_strength_t": 1.5 if vendor == "GE" else 3.0,
        "cord_area_mm2": float(rng.normal(62, 6)), "cord_area_odd_mm": float(rng.exponential(3)),
    }  # fmt: skip
    poor = rng.random() < 0.04
    for name in SEQUENCES:
        noise = float(rng.lognormal(-1.0, 0.15)) * (4 if poor else 1)
        seen = length * (0.45 if name == "T2StarAx" else 1.0)
        row |= {
            f"{name}_examined_mm": seen, f"{name}_cord_contrast": 2.0, f"{name}_cord_noise": noise,
            f"{name}_cord_cnr": 2.0 / noise, f"{name}_coverage": seen / length,
            f"{name}_centerline_residual_mm": float(rng.lognormal(-2, 0.3)),
            f"{name}_extrapolated_mm": float(rng.exponential(4)),
            f"{name}_seam_mismatch_mm": float(rng.exponential(0.4)), f"{name}_edge_share": 0.0,
            f"{name}_voxel_mm": "0.5 x 0.5 x 3", f"{name}_voxel_mm3": 0.75,
        }  # fmt: skip
    return row


def _map(lesions: list[dict[str, object]], length: float) -> dict[str, object]:
    bins, first = int(length / BIN_MM), int(TOP_MM / BIN_MM)
    along, across = np.zeros(bins), np.zeros((len(RING_EDGES), SECTORS))
    for lesion in lesions:
        at = int((float(str(lesion["arc_length_mm"])) - TOP_MM) / BIN_MM)
        along[max(at - 1, 0) : at + 2] += float(str(lesion["volume_mm3"])) / 3
        sector = int((float(str(lesion["angle_deg"])) + 180) % 360 / 360 * SECTORS)
        ring = np.digitize(float(str(lesion["radius_normalised"])), RING_EDGES) - 1
        across[ring, [sector - 1, sector, (sector + 1) % SECTORS]] += float(str(lesion["volume_mm3"])) / 3
    cord = np.full((len(RING_EDGES), SECTORS), length * 60 / (len(RING_EDGES) * SECTORS))
    levels = [
        [name, TOP_MM + n * LEVEL_MM, TOP_MM + (n + 1) * LEVEL_MM]
        for n, name in enumerate(CORD_LEVELS) if (n + 1) * LEVEL_MM <= length
    ]  # fmt: skip
    return {
        "bin_mm": BIN_MM, "ring_edges": list(RING_EDGES), "sectors": SECTORS, "anatomical": True,
        "levels": levels, "first": first, "cord_mm": [BIN_MM] * bins, "examined_mm": [BIN_MM] * bins,
        "cord_mm3": [BIN_MM * 60] * bins, "lesion_mm3": along.round(2).tolist(),
        "across_cord_mm3": cord.ravel().round(2).tolist(),
        "across_lesion_mm3": across.ravel().round(2).tolist(),
    }  # fmt: skip


def _strip(lesions: list[dict[str, object]], length: float, rng: np.random.Generator) -> np.ndarray:
    """A grey cord in bright fluid, plain and with orange lesions, as the participant level draws it."""
    rows, x = int(length), np.arange(30) - 14.5
    profile = 90 + 130 * np.exp(-((np.abs(x) - 7) ** 2) / 8) - 20 * (np.abs(x) > 11)
    grey = np.clip(profile + rng.normal(0, 12, (rows, 30)), 0, 255)
    plain = np.repeat(grey[..., None], 3, axis=2)
    marked = plain.copy()
    for lesion in lesions:
        at = int(float(str(lesion["arc_length_mm"])) - TOP_MM)
        across = 15 - int(3 * np.cos(np.radians(float(str(lesion["angle_deg"])))))
        marked[max(at - 5, 0) : at + 5, across - 2 : across + 3] = (255, 150, 0)
    gap = np.full((rows, 2, 3), 255.0)
    return np.concatenate([plain, gap, marked], axis=1).astype(np.uint8)


def _json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
