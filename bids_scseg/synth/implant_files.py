"""Files of a dataset with implanted lesions: images with their own headers, truth, tables, descriptions."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bids_scseg.bids.filters import Filters
from bids_scseg.bids.names import cord_mask_name, image_names, sidecar
from bids_scseg.errors import DataError, ScsegError
from bids_scseg.files import leads_out, read_json
from bids_scseg.processes import worker_pool
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.synth import IMPLANT_VERSION
from bids_scseg.synth.contrast import SEQUENCES
from bids_scseg.synth.cords import CordImage
from bids_scseg.synth.dataset import BIDS_VERSION
from bids_scseg.synth.files import GZIP_LEVEL, write_json, write_nifti, write_tsv
from bids_scseg.synth.implant import Painted
from bids_scseg.synth.implanted import (
    Implanted,
    ImplantSettings,
    RealSession,
    Source,
    implant_session,
    read_real_session,
)
from bids_scseg.synth.session import TRUTH_COLUMNS, Place, realised_class, truth_texts

LOG = logging.getLogger(__name__)

README = """# Real spinal cord MRI with synthetic lesions

The scans are real; the lesions in their cords are computed (bids_scseg, `scseg implant`) and say nothing
about the people scanned. No voxel outside the cord masks differs from the source dataset, whose
licence and terms hold for this one. Images that are no sequence of the recipe, or have no cord mask, are
not here
(derivatives/labels/images.tsv says why).

Sessions whose label ends in i01, i02, … are copies of one session with other lesions: keep a subject's
sessions together whenever data are split. Some have no lesion.
"""
LABELS_README = """# Truth of the implanted lesions

On the lattice of each image: `*_label-SC_*_mask` (cord), `*_label-lesion_*_mask`, `*_seg-lesions_*_dseg`
(lesion numbers: voxels at least half filled). In the anchor's world at 0.5 mm: `*_res-iso_*_desc-truth_*`
with a table for each session. lesions.tsv has every lesion in every image; images.tsv every image
of the source.
"""
LESION_TABLE = {
    "participant_id": "subject",
    "session_id": "session of this dataset",
    "index": "number of the lesion in its session, the value in the images",
    "image": "image, relative to this dataset",
    "sequence": "sequence that the image is",
    "column": "column of the cord at the lesion's centre",
    "arc_mm": "arc length along the cord from the top of the masks to the centre, mm; negative below",
    "length_mm": "extent along the cord, mm of arc length",
    "area_mm2": "cross-section at the lesion's centre, mm2",
    "class": "detectability drawn for this sequence",
    "cnr_wanted": "contrast-to-noise ratio drawn",
    "cnr": "contrast-to-noise ratio measured in the painted image, positive in the expected direction",
    "realised": "class of the measured ratio: visible from 2, faint from 0.7",
    "amplitude": "intensity added where the lesion fills a voxel, relative to the cord around",
    "voxels": "voxels at least half filled by the lesion",
    "volume_mm3": "volume of the lesion in this image, mm3",
}
IMAGE_TABLE = {
    "image": "image of the source dataset",
    "sequence": "sequence that it is; n/a if it is none of the recipe's",
    "state": "painted or left out",
    "cord_mask": "file name of the cord mask",
    "lender": "image that the mask was drawn on, where it is another one",
    "reason": "why the image is left out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker process needs; ``follow_links`` as for :func:`~bids_scseg.bids.query.find_studies`."""

    out: Path
    recipe: Recipe
    masks: tuple[Path, ...]
    settings: ImplantSettings
    filters: Filters | None = None
    follow_links: bool = False

    def takes(self, file: Path, raw: Path) -> bool:
        """Whether a file beside the images is there to be read; a link out of the source dataset is not."""
        if self.follow_links or not file.is_file() or not leads_out(file, raw):
            return file.is_file()
        LOG.warning(
            "%s: a link that leads out of the dataset; not copied (allow it with --follow-links)", file
        )
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What became of one session, for the tables.

    Attributes
    ----------
    sources
        All its images.
    lesions
        Rows of lesions.tsv.
    sessions
        Rows of the subject's sessions table, ``(subject, row)``.
    """

    sources: tuple[Source, ...]
    lesions: tuple[dict[str, object], ...]
    sessions: tuple[tuple[str, dict[str, object]], ...]


def write_implanted(
    studies: Sequence[Study],
    job: Job,
    *,
    workers: int = 1,
    progress: Callable[[SessionRecord], None] = lambda record: None,
) -> tuple[SessionRecord, ...]:
    """Write a dataset of real scans with synthetic lesions.

    Parameters
    ----------
    studies
        Sessions of one dataset, at least one.
    job
        Where to, and what.
    workers
        Processes; the bytes do not depend on them.
    progress
        Called whenever a session is done.

    Returns
    -------
    tuple of SessionRecord
        In the order of ``studies``.
    """
    raw = Path(studies[0].dataset)
    write_descriptions(job, raw)
    task = partial(write_real_session, job)
    records = []
    for record in _mapped(task, studies, workers):
        progress(record)
        records.append(record)
    _write_tables(job, raw, records)
    return tuple(records)


def _mapped(
    task: Callable[[Study], SessionRecord], studies: Sequence[Study], workers: int
) -> Iterable[SessionRecord]:
    if workers <= 1 or len(studies) < 2:
        yield from map(task, studies)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(task, studies)


def write_real_session(job: Job, study: Study) -> SessionRecord:
    """Implant and write all copies of one session; one that cannot be read costs no other."""
    try:
        session = read_real_session(study, job.recipe, masks=job.masks, filters=job.filters)
    except ScsegError as error:
        sources = tuple(Source(image=image, reason=str(error)) for image in study.images)
        return SessionRecord(sources=sources, lesions=(), sessions=())
    lesions: list[dict[str, object]] = []
    rows: list[tuple[str, dict[str, object]]] = []
    if session.cord is not None:
        files = {source.image.relative: source.image for source in session.sources}
        sidecars = {image.name: _sidecar(job, study, files[image.name]) for image in session.images}
        for copy in range(1, job.settings.copies + 1):
            done = implant_session(session, job.settings, copy)
            place = Place(root=job.out, subject=study.subject, session=_label(study, job.settings, copy))
            lesions += _write_copy(place, session, done, sidecars=sidecars)
            rows.append((study.subject, _session_row(place, study, session, done)))
    return SessionRecord(sources=session.sources, lesions=tuple(lesions), sessions=tuple(rows))


def _label(study: Study, settings: ImplantSettings, copy: int) -> str | None:
    return study.session if settings.copies == 1 else f"{study.session or ''}i{copy:02d}"


def _session_row(place: Place, study: Study, session: RealSession, done: Implanted) -> dict[str, object]:
    return {
        "session_id": f"ses-{place.session}" if place.session else "",
        "source_session": f"ses-{study.session}" if study.session else "",
        "copy": done.copy,
        "lesions": len(done.implants),
        "cord_mm": round(session.cord.covered_mm, 1) if session.cord else 0.0,
    }


# --------------------------------------------------------------------------------------------------- one copy


def _write_copy(
    place: Place, session: RealSession, done: Implanted, *, sidecars: Mapping[str, dict[str, object]]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    files = {source.image.relative: source.image for source in session.sources}
    for image in session.images:
        painted = done.painted[image.name]
        target = _renamed(files[image.name], place)
        write_painted(files[image.name], place.root / target.relative, image.data, painted.data)
        facts = {"ImplantedLesions": len(done.implants), "SourceImage": image.name}
        write_json(place.root / sidecar(target.relative), sidecars[image.name] | facts)
        _write_masks(place, target, image, painted)
        rows += _lesion_rows(place, target, image, painted, done)
    _write_truth(place, session, done)
    return rows


def _renamed(image: ImageFile, place: Place) -> ImageFile:
    """The image as it is called in the new session."""
    tail = tuple(pair for pair in image.entities if pair[0] not in ("sub", "ses"))
    head = (("sub", place.subject), *((("ses", place.session),) if place.session else ()))
    extension = image.name.removeprefix(image.stem)
    name = "_".join(["-".join(pair) for pair in (*head, *tail)] + [image.suffix]) + extension
    relative = f"{place.folder}/{name}"
    return replace(image, path=str(place.root / relative), relative=relative, entities=(*head, *tail))


def write_painted(
    source: ImageFile,
    target: Path,
    before: npt.NDArray[np.floating[Any]],
    after: npt.NDArray[np.floating[Any]],
) -> None:
    """Write an image as its source is stored, with other values where ``after`` differs from ``before``.

    Header, extensions and the bytes of all other voxels are the source's. Integers are rounded and kept
    within their type's range.
    """
    raw = Path(source.path).read_bytes()
    packed = raw[:2] == b"\x1f\x8b"
    content = gzip.decompress(raw) if packed else raw
    header = _header(content)
    dtype, start = header.get_data_dtype(), int(header["vox_offset"])
    stop = start + int(np.prod(before.shape)) * dtype.itemsize
    voxels = np.frombuffer(content[start:stop], dtype).copy()
    slope, _ = header.get_slope_inter()
    change = (after.astype(float) - before.astype(float)).reshape(-1, order="F") / (slope or 1.0)
    where = np.flatnonzero(change)
    values = voxels[where].astype(float) + change[where]
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    voxels[where] = values.astype(dtype)
    written = content[:start] + voxels.tobytes() + content[stop:]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(written, GZIP_LEVEL, mtime=0) if packed else written)


def _header(content: bytes) -> Any:
    """NIfTI-1 or -2 header of a file's bytes."""
    second = int.from_bytes(content[:4], "little") == 540 or int.from_bytes(content[:4], "big") == 540
    kind: Any = nib.Nifti2Header if second else nib.Nifti1Header
    # an image's header would say that its voxels start at 0
    return kind(content[: kind.sizeof_hdr])


def _sidecar(job: Job, study: Study, image: ImageFile) -> dict[str, object]:
    """What all sidecars say of an image; those that cannot be read say nothing.

    The copy bears it all itself: sidecars of the source's subject or session do not come along, and what they
    alone say may decide which sequence the copy is.
    """
    root = Path(study.dataset)
    merged: dict[str, object] = {}
    for file in _applying(root, image):
        if not job.takes(file, root):
            continue
        try:
            content = read_json(file)
        except DataError:  # matching the image did without it, too
            continue
        merged |= content if isinstance(content, dict) else {}
    return merged


def _applying(root: Path, image: ImageFile) -> Iterator[Path]:
    """Sidecars that apply to an image by BIDS' inheritance, the most general first."""
    own = set(image.entities)
    folders = Path(image.relative).parent.parts
    for depth in range(len(folders) + 1):
        fitting = []
        for file in root.joinpath(*folders[:depth]).glob("*.json"):
            *parts, suffix = file.stem.split("_")
            if suffix == image.suffix and own.issuperset(part.partition("-")[::2] for part in parts):
                fitting.append((len(parts), file))
        yield from (file for _, file in sorted(fitting))


def _write_masks(place: Place, target: ImageFile, image: CordImage, painted: Painted) -> None:
    """Cord mask, lesion mask and lesion numbers on the image's own lattice."""
    root = place.root / "derivatives" / "labels"
    sources = {"Sources": [f"bids:raw:{target.relative}"], "Manual": False}
    names = image_names(target)
    cord = cord_mask_name(target)
    soft = bool(((image.cord > 0) & (image.cord < 1)).any())
    write_nifti(root / cord, image.cord if soft else image.cord.astype(np.uint8), image.grid.affine)
    write_json(root / sidecar(cord), sources | {"Type": "ROI"})
    write_nifti(root / names.mask, (painted.lesions > 0).astype(np.uint8), image.grid.affine)
    write_json(root / sidecar(names.mask), sources | {"Type": "Lesion"})
    write_nifti(root / names.dseg, painted.lesions, image.grid.affine)
    write_json(root / sidecar(names.dseg), sources)
    rows: list[dict[str, object]] = [
        {"index": n, "name": f"lesion {n}"} for n in range(1, len(painted.cnr) + 1)
    ]
    table = root / sidecar(names.dseg)
    write_tsv(table.with_suffix(".tsv"), ("index", "name"), rows)


def _lesion_rows(
    place: Place, target: ImageFile, image: CordImage, painted: Painted, done: Implanted
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for n, implant in enumerate(done.implants):
        lesion = implant.lesion
        rows.append({
            "participant_id": f"sub-{place.subject}",
            "session_id": f"ses-{place.session}" if place.session else "",
            "index": n + 1,
            "image": target.relative,
            "sequence": image.sequence,
            "column": lesion.column,
            "arc_mm": lesion.arc_mm,
            "length_mm": lesion.length_mm,
            "area_mm2": lesion.area_mm2,
            "class": lesion.detectability[image.sequence],
            "cnr_wanted": lesion.cnr[image.sequence],
            "cnr": float(painted.cnr[n]),
            "realised": realised_class(float(painted.cnr[n])),
            "amplitude": float(painted.amplitude[n]),
            "voxels": int((painted.lesions == n + 1).sum()),
            "volume_mm3": float(painted.volume_mm3[n]),
        })  # fmt: skip
    return rows


# ----------------------------------------------------------------------------------------------------- truth


def _write_truth(place: Place, session: RealSession, done: Implanted) -> None:
    """Cord and lesions at 0.5 mm in the anchor's world, with the table of the session's lesions."""
    resolution = {"Resolution": "0.5 mm isotropic, in the world of the anchor", "Manual": False}
    base = place.labels / place.prefix
    frame = session.frame
    if frame is None:
        return
    affine = np.array(frame.grid.affine)
    cord = base.with_name(base.name + "_res-iso_label-SC_desc-truth_mask")
    write_nifti(cord.with_suffix(".nii.gz"), frame.cord, affine)
    write_json(cord.with_suffix(".json"), resolution | {"Type": "ROI"})
    path = base.with_name(base.name + "_seg-lesions_res-iso_desc-truth_dseg")
    write_nifti(path.with_suffix(".nii.gz"), done.truth, affine)
    write_json(path.with_suffix(".json"), resolution | truth_texts(origin="the top of the cord masks"))
    rows = [_truth_row(session, done, n) for n in range(len(done.implants))]
    write_tsv(path.with_suffix(".tsv"), TRUTH_COLUMNS, rows)


def _truth_row(session: RealSession, done: Implanted, n: int) -> dict[str, object]:
    lesion = done.implants[n].lesion
    row: dict[str, object] = {
        "index": n + 1,
        "name": f"lesion {n + 1}",
        "volume_mm3": float(done.volume_mm3[n]),
        "arc_mm": lesion.arc_mm,
        "z_mm": lesion.z_mm,
        "level": "",
        "length_mm": lesion.length_mm,
        "area_mm2": lesion.area_mm2,
        "column": lesion.column,
        "grey_matter": "yes" if lesion.grey else "no",
    }
    for sequence in SEQUENCES:
        shown = [done.painted[image.name] for image in session.images if image.sequence == sequence]
        covering = [painted for painted in shown if np.isfinite(painted.cnr[n])]
        if covering:
            best = max(covering, key=lambda painted: int((painted.lesions == n + 1).sum()))
            row[f"class_{sequence}"] = lesion.detectability[sequence]
            row[f"cnr_{sequence}"] = float(best.cnr[n])
            row[f"realised_{sequence}"] = realised_class(float(best.cnr[n]))
    return row


# ---------------------------------------------------------------------------------------------------- tables


def _write_tables(job: Job, raw: Path, records: Sequence[SessionRecord]) -> None:
    out = job.out
    labels = out / "derivatives" / "labels"
    lesions = [row for record in records for row in record.lesions]
    write_tsv(labels / "lesions.tsv", tuple(LESION_TABLE), lesions)
    write_json(labels / "lesions.json", _described(LESION_TABLE))
    images: list[dict[str, object]] = [
        {
            "image": source.image.relative,
            "sequence": source.sequence,
            "state": "left out" if source.reason else "painted",
            "cord_mask": Path(source.mask).name if source.mask else "",
            "lender": source.lender,
            "reason": " ".join(source.reason.split()),
        }
        for record in records
        for source in record.sources
    ]
    write_tsv(labels / "images.tsv", tuple(IMAGE_TABLE), images)
    write_json(labels / "images.json", _described(IMAGE_TABLE))
    rows = [row for record in records for row in record.sessions]
    subjects = dict.fromkeys(subject for subject, _ in rows)
    for subject in subjects:
        own = [row for other, row in rows if other == subject]
        if own[0]["session_id"]:
            write_tsv(out / f"sub-{subject}" / f"sub-{subject}_sessions.tsv", tuple(own[0]), own)
    _write_participants(job, raw, subjects)


def _described(table: dict[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"Description": text} for name, text in table.items()}


def _write_participants(job: Job, raw: Path, subjects: Iterable[str]) -> None:
    """The rows of the source's table that are here; only the labels where it has none."""
    labels = [f"sub-{subject}" for subject in subjects]
    table, texts = raw / "participants.tsv", raw / "participants.json"
    lines = ["participant_id"]
    if job.takes(table, raw):
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    known = {line.split("\t")[0]: line for line in lines[1:]}
    width = len(lines[0].split("\t"))
    rows = [known.get(label, "\t".join([label, *["n/a"] * (width - 1)])) for label in labels]
    (job.out / "participants.tsv").write_text("\n".join([lines[0], *rows]) + "\n", encoding="utf-8")
    if job.takes(texts, raw):
        (job.out / "participants.json").write_bytes(texts.read_bytes())


def write_descriptions(job: Job, raw: Path) -> None:
    """Descriptions and README files of the dataset and its derivative; shared sidecars of the source."""
    out, settings = job.out, job.settings
    own = raw / "dataset_description.json"
    source = json.loads(own.read_text(encoding="utf-8-sig")) if own.is_file() else {}
    maker = {
        "Name": "bids_scseg implant",
        "Version": str(IMPLANT_VERSION),
        "Description": json.dumps({name: getattr(settings, name) for name in ImplantSettings.__slots__}),
    }
    name = str(source.get("Name", "Spinal cord MRI"))
    origin = {"URL": str(source.get("DatasetDOI", "")) or name}
    common: dict[str, object] = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": [maker]}
    common |= {key: source[key] for key in ("License", "Authors") if key in source}
    raw_text = common | {"Name": f"{name}, with synthetic lesions", "DatasetType": "raw"}
    write_json(out / "dataset_description.json", raw_text | {"SourceDatasets": [origin]})
    labels = out / "derivatives" / "labels"
    links = {"DatasetLinks": {"raw": "../.."}, "SourceDatasets": [{"URL": "../.."}]}
    truth = common | links | {"Name": f"{name}, with synthetic lesions: truth", "DatasetType": "derivative"}
    write_json(labels / "dataset_description.json", truth)
    (out / "README").write_text(README, encoding="utf-8")
    (labels / "README").write_text(LABELS_README, encoding="utf-8")
    for file in sorted(raw.glob("*.json")):
        if file.name not in ("dataset_description.json", "participants.json") and job.takes(file, raw):
            (out / file.name).write_bytes(file.read_bytes())
