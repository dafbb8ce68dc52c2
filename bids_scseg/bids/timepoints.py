"""The sessions of one person as the participant level left them, with what their comparison needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bids_scseg import files
from bids_scseg.bids.dataset import RAW, linked_folder
from bids_scseg.bids.given import read_geometry
from bids_scseg.bids.names import session_label
from bids_scseg.bids.write import safe_join
from bids_scseg.errors import DataError, ImageError, OutputError
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray, Grid
from bids_scseg.space.nifti import read_image

NIFTI = ".nii.gz"
SAME_LATTICE = "the lattice that the session was prepared from"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFiles:
    """Files of one session; those that are not there are None.

    Attributes
    ----------
    label
        ``sub-X[_ses-Y]``.
    geometry
        ``…_geometry.json``.
    lesions, probability
        Numbered lesions and lesion probability on the lattice of the fused anchor.
    image
        The anchor in the session's reference world: fused by the participant level, or the raw image.
    fused
        Whether ``image`` is the former.
    """

    label: str
    geometry: Path | None = None
    lesions: Path | None = None
    probability: Path | None = None
    image: Path | None = None
    fused: bool = False


def raw_folder(out: Path) -> Path | None:
    """The raw dataset that an output folder names as its source; None if it is not there."""
    try:
        described = files.read_json(out / "dataset_description.json")
    except DataError:
        return None
    links = described.get("DatasetLinks") if isinstance(described, dict) else None
    found = linked_folder(out, links.get(RAW)) if isinstance(links, dict) else None
    return found if found is not None and found.is_dir() else None


def find_session_files(
    out: Path, subject: str, session: str | None, *, raw: Path | None, table: Path | None
) -> SessionFiles:
    """Look for a session's files.

    Parameters
    ----------
    out
        Output folder of the participant level.
    subject, session
        Labels without prefix.
    raw
        Root of the raw dataset, where there is one: a single anchor image is not copied to the outputs.
    table
        The session's lesion table: its images lie beside it.
    """
    label = session_label(subject, session)
    folder = safe_join(out, "/".join([f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat"]))
    geometry = folder / f"{label}_geometry.json"
    found = SessionFiles(label=label, geometry=geometry if geometry.is_file() else None)
    if table is not None:
        lesions = table.with_suffix("").with_name(table.name.removesuffix(".tsv") + NIFTI)
        head = lesions.name.removesuffix(f"_seg-lesions_dseg{NIFTI}")
        probability = lesions.with_name(f"{head}_label-lesion_probseg{NIFTI}")
        found = replace(
            found,
            lesions=lesions if lesions.is_file() else None,
            probability=probability if probability.is_file() else None,
        )
    fused = sorted(folder.glob(f"{label}_*desc-preproc_*{NIFTI}"))
    if len(fused) == 1:
        return replace(found, image=fused[0], fused=True)
    return replace(found, image=_raw_anchor(found.geometry, raw))


def _raw_anchor(geometry: Path | None, raw: Path | None) -> Path | None:
    """The anchor's raw image, where it is a single one that is there."""
    if geometry is None or raw is None:
        return None
    try:
        known = read_geometry(geometry)
        slabs = known.slabs_of(known.anchor)
        path = safe_join(raw, slabs[0].file) if len(slabs) == 1 else None
    except (DataError, OutputError):
        return None
    return path if path is not None and path.is_file() else None


def read_anchor(found: SessionFiles, geometry: Geometry) -> tuple[npt.NDArray[np.float32], Grid]:
    """The anchor's image in the reference world, with its lattice.

    Raises
    ------
    ImageError, MissingInputError
        If it cannot be read, or its lattice is not the one that the geometry knows.
    """
    if found.image is None:
        raise ImageError("no image of the anchor", file=found.label)
    data, grid = read_image(found.image)
    wanted = geometry.fused_grid(geometry.anchor)
    if grid.shape != wanted.shape or not np.allclose(grid.affine, wanted.affine, atol=1e-3):
        raise ImageError("another lattice", file=found.image, expected=SAME_LATTICE)
    return data, grid


def read_map(path: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """A map of the participant level, which may be 0 everywhere, with its lattice.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    import nibabel as nib

    from bids_scseg.space.nifti import READ_ERRORS, inspect_header

    grid = inspect_header(path).grid
    try:
        data = np.asarray(nib.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    except READ_ERRORS as error:
        raise ImageError(f"voxels cannot be read ({error})", file=path) from error
    return np.nan_to_num(data.reshape(grid.shape)), grid


# -- when ------------------------------------------------------------------------------------------


def acquisition_times(raw: Path, labels: Iterable[tuple[str, str | None]]) -> dict[str, datetime]:
    """When sessions were acquired, as the raw dataset says.

    ``acq_time`` of ``sub-X_sessions.tsv``, else the earliest in the session's ``…_scans.tsv``. Dates may have
    been moved for privacy; BIDS asks that they are moved alike within a participant.

    Parameters
    ----------
    raw
        Root of the raw dataset.
    labels
        Subject and session labels without prefix.

    Returns
    -------
    Session label (``sub-X[_ses-Y]``) → time, without time zone; sessions whose time is not known, or not
    written as BIDS asks, are absent.
    """
    found: dict[str, datetime] = {}
    tables: dict[str, Mapping[str, datetime]] = {}
    for subject, session in labels:
        if subject not in tables:
            path = raw / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
            tables[subject] = _times(path, "session_id")
        label = session_label(subject, session)
        folder = raw / f"sub-{subject}" / (f"ses-{session}" if session else "")
        time = tables[subject].get(f"ses-{session}") or min(
            _times(folder / f"{label}_scans.tsv", "filename").values(), default=None
        )
        if time is not None:
            found[label] = time
    return found


def _times(path: Path, key: str) -> dict[str, datetime]:
    """Row's name → ``acq_time`` of a table; empty where there is none or it cannot be used."""
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError):
        return {}
    if not {key, "acq_time"} <= set(table.columns):
        return {}
    found = {}
    for name, text in zip(table[key], table["acq_time"], strict=True):
        time = _time(str(text))
        if time is not None:
            found[str(name)] = time
    return found


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        return None


def origin_world(geometry: Geometry, s_mm: float) -> FloatArray:
    """(3,) reference world mm of the anchor's centerline at a position s."""
    line = geometry.centerlines.get(geometry.anchor)
    across = geometry.axis_mm if line is None else line.at(s_mm)
    return np.asarray(np.array([*across, s_mm]) @ geometry.grid.axes.T)
