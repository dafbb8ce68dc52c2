"""From a BIDS dataset with labels to prepared training cases, by the fit and apply of the pipeline."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg import NUMERICAL_VERSION, __version__
from bids_scseg.bids.filters import Filters
from bids_scseg.bids.header import READ_ERRORS, read_image
from bids_scseg.bids.masks import same_lattice
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.bids.references import LesionMap, find_lesion_maps
from bids_scseg.bids.write import write_tsv
from bids_scseg.errors import CordNotFoundError, DataError, ImageError, MissingInputError, ScsegError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.recipe.load import recipe_to_json
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, Study
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid
from bids_scseg.training.cases import LESIONS_FILE
from bids_scseg.training.reference import place_maps
from bids_scseg.training.sample import IGNORE

Rng = np.random.Generator
Floats = npt.NDArray[np.float32]
CordFinder = Callable[[npt.NDArray[np.generic], Grid], npt.NDArray[np.generic]]
State = Literal["done", "kept", "refused", "failed"]

JITTER_MM = 0.4  # standard deviation of a finder's centerline errors that training imitates, ours
JITTER_PERIOD_MM = 30.0  # along the cord, over which they vary, ours

TABLE = "prepared.tsv"
COLUMNS = ("session", "state", "cause", "remedy", "sequences", "lesions", "volume_mm3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How sessions become cases; travels to worker processes.

    Attributes
    ----------
    out
        Folder for the cases and the table.
    labels
        Roots with lesion maps, most trusted first.
    recipe
        What is trained.
    derivatives
        Roots with cord masks that come before those in the labels folders.
    masks_of_labels
        Whether cord masks in the labels folders are looked at, too.
    filters
        For a sequence, the entities of its files, where the matching is overruled.
    finder
        Bundle's folder of the cord finder for images without a mask; empty: such images have no cord.
    use_masks
        Whether cord masks are taken where there are any; else the finder serves all images.
    desc
        Only lesion maps with this ``desc-`` value.
    jitter_mm
        Smooth random displacement of each sequence's centerline, as a finder's errors.
    register
        Whether slabs are registered.
    seed
        Of jitter (with the session's name) and registration.
    threads
        Of the finder; 0 leaves torch its choice.
    """

    out: Path
    labels: tuple[Path, ...]
    recipe: Recipe
    derivatives: tuple[Path, ...] = ()
    masks_of_labels: bool = True
    filters: Filters | None = None
    finder: str = ""
    use_masks: bool = True
    desc: str | None = None
    jitter_mm: float = 0.0
    register: bool = True
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRow:
    """How one session ended: a row of ``prepared.tsv``.

    Attributes
    ----------
    session
        ``sub-X[_ses-Y]``.
    state
        ``done``; ``kept`` (an earlier case whose inputs are unchanged); ``refused`` (nothing to prepare: no
        lesion map, no usable image, no cord); ``failed``.
    cause, remedy
        In words; empty where all went well.
    sequences
        Names of those with data, joined by ``+``.
    lesions, volume_mm3
        In prepared space.
    """

    session: str
    state: State
    cause: str = ""
    remedy: str = ""
    sequences: str = ""
    lesions: int = 0
    volume_mm3: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is a case."""
        return self.state in ("done", "kept")


def prepare_dataset(
    dataset: Path,
    labels: Path,
    *,
    recipe: Recipe,
    out: Path,
    participants: Iterable[str] = (),
    jitter_mm: float = JITTER_MM,
    register: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Prepare every session of a synthetic training set, in this process; the first error ends it.

    For people's data see :func:`prepare_one` and ``scseg prepare``.

    Parameters
    ----------
    dataset
        Root of a raw BIDS dataset.
    labels
        Root of its derivatives with cord masks and lesion maps.
    recipe
        What is trained.
    out
        Folder for the cases, one folder each.
    participants
        Labels wanted; empty: all.
    jitter_mm, register, seed
        See :class:`Preparation`. Training sets are generated as after a registration.

    Returns
    -------
    list of pathlib.Path
        Folders of the cases written; sessions without a usable image are left out.
    """
    written = []
    for study in find_studies(dataset, participants=tuple(participants)):
        plan = make_plan(study, recipe, derivatives=(labels,))
        if plan.anchor is None:
            continue
        rng = np.random.default_rng([seed, *plan.label.encode()])
        folder = out / plan.label
        prepare_case(plan, recipe, labels=labels, out=folder, rng=rng, jitter_mm=jitter_mm, register=register)
        written.append(folder)
    return written


def prepare_case(
    plan: Plan,
    recipe: Recipe,
    *,
    labels: Path,
    out: Path,
    rng: Rng,
    jitter_mm: float = JITTER_MM,
    register: bool = False,
    cord: CordFinder | None = None,
) -> Path:
    """Prepare one planned session and its lesion map; see :func:`prepare_dataset`.

    ``cord`` replaces the plan's cord masks: native image (i, j, k) and its grid to cord probability.
    """
    files = tuple(file for sequence in plan.sequences for file in sequence.files)
    study = Study(subject=plan.subject, session=plan.session, dataset=plan.dataset, images=files)
    maps, _ = find_lesion_maps(study, (labels,))
    read = _read(plan, cord, use_masks=cord is None)
    setting = Preparation(
        out=out.parent, labels=(labels,), recipe=recipe, jitter_mm=jitter_mm, register=register
    )
    _write_case(plan, maps, read, setting=setting, folder=out, rng=rng, record={})
    return out


# -- a group's own data ----------------------------------------------------------------------------


def prepare_one(study: Study, setting: Preparation) -> PreparedRow:
    """Prepare one session; whatever is wrong with it ends in its row, never in an exception.

    A case that is there and was made from the same files by the same rules is kept. A case that was made from
    others and cannot be made anew is removed: it is not what the row says.
    """
    folder = setting.out / study.label
    try:
        return _prepare(study, setting, folder)
    except ScsegError as error:
        row = failure(study.label, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, other sessions go on
        words = str(error).strip().splitlines() or [""]
        row = PreparedRow(
            session=study.label,
            state="failed",
            cause=f"unexpected {type(error).__name__}: {words[-1]}",
            remedy="please report it, with the session's headers",
        )
    shutil.rmtree(folder, ignore_errors=True)
    return row


def failure(label: str, error: ScsegError) -> PreparedRow:
    """The row of a session that an error of ours ended."""
    refused = isinstance(error, CordNotFoundError | MissingInputError)
    where = f"{error.file}: " if error.file else ""
    return PreparedRow(
        session=label,
        state="refused" if refused else "failed",
        cause=where + error.found + (f"; expected {error.expected}" if error.expected else ""),
        remedy=error.remedy or "",
    )


def _prepare(study: Study, setting: Preparation, folder: Path) -> PreparedRow:
    maps, notes = find_lesion_maps(study, setting.labels, desc=setting.desc)
    roots = dict.fromkeys((*setting.derivatives, *(setting.labels if setting.masks_of_labels else ())))
    plan = make_plan(study, setting.recipe, filters=setting.filters, derivatives=tuple(roots))
    if plan.anchor is None:
        raise _no_usable_image(plan)
    fingerprint = _fingerprint(plan, maps, setting)
    known = _record_of(folder)
    if known.get("fingerprint") == fingerprint:
        return _row(study.label, known, state="kept")
    finder = _finder(setting.finder, setting.threads) if setting.finder else None
    read = _read(plan, finder, use_masks=setting.use_masks)
    partial = setting.out / f".{study.label}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    record: dict[str, object] = {
        "fingerprint": fingerprint,
        "warnings": [*plan.warnings, *notes, *read.problems],
    }
    rng = np.random.default_rng([setting.seed, *study.label.encode()])
    _write_case(plan, maps, read, setting=setting, folder=partial, rng=rng, record=record)
    _publish(partial, folder)
    return _row(study.label, _record_of(folder), state="done")


def _no_usable_image(plan: Plan) -> MissingInputError:
    reasons = "; ".join(f"{path.rsplit('/', 1)[-1]}: {reason}" for path, reason in plan.left_out)
    return MissingInputError(
        f"{plan.refusal or 'no image can be used'} ({reasons or 'it has no images'})",
        file=f"{plan.dataset}/sub-{plan.subject}",
        remedy="correct or replace the file, or name files with --bids-filter-file",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """Images and cords of a session, by sequence, and what was wrong with files."""

    images: dict[str, list[tuple[Floats, Grid, str]]]
    cords: dict[str, list[npt.NDArray[np.generic] | None]]
    sources: dict[str, str]
    problems: list[str]


def _read(plan: Plan, finder: CordFinder | None, *, use_masks: bool) -> _Read:
    """Read all images of a plan, and a cord for each; an image that cannot be read is left out."""
    masks = dict(plan.cord_masks) if use_masks else {}
    out = _Read(images={}, cords={}, sources={}, problems=[])
    for sequence in plan.sequences:
        for file in sequence.files:
            try:
                data, grid = read_image(file.path)
            except ImageError as error:
                out.problems.append(f"{sequence.name}: {error}")
                continue
            cord, source = _cord(file, data, grid, mask=masks.get(file.relative), finder=finder)
            out.images.setdefault(sequence.name, []).append((data, grid, file.relative))
            out.cords.setdefault(sequence.name, []).append(cord)
            out.sources[file.relative] = source
    if not out.images:
        raise ImageError(
            f"no image can be read ({'; '.join(out.problems)})", remedy="convert the images again"
        )
    return out


def _cord(
    file: ImageFile, data: Floats, grid: Grid, *, mask: str | None, finder: CordFinder | None
) -> tuple[npt.NDArray[np.generic] | None, str]:
    """Cord probability of an image, or None, and where it came from."""
    if mask is not None:
        return np.clip(_read_mask(Path(mask), grid), 0, 1), Path(mask).name
    if finder is None:
        return None, "none"
    try:
        return np.clip(finder(data, grid), 0, 1), "cord-finder"
    except ImageError as error:
        return None, f"none ({error.found}: {file.name})"


def _read_mask(path: Path, grid: Grid) -> Floats:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    except READ_ERRORS as error:
        raise ImageError(
            f"cord mask cannot be read ({error})", file=path, expected="a NIfTI volume"
        ) from error
    own = Grid(shape=(data.shape[0], data.shape[1], data.shape[2]), affine=np.asarray(image.affine))
    if not same_lattice(own, grid):
        raise ImageError(
            f"cord mask of shape {own.shape}", file=path, expected=f"the image's lattice {grid.shape}",
            remedy="resample the mask to the image",
        )  # fmt: skip
    return data


@cache
def _finder(bundle: str, threads: int) -> CordFinder:
    """The built-in cord finder, loaded once per process."""
    import torch

    from bids_scseg.inference.predict import find_cord, load_network

    if threads:
        torch.set_num_threads(threads)
    loaded = load_bundle(bundle)
    network = load_network(loaded)
    return lambda data, grid: find_cord(network, loaded, image=data, affine=grid.affine)


def _write_case(
    plan: Plan,
    maps: Sequence[LesionMap],
    read: _Read,
    *,
    setting: Preparation,
    folder: Path,
    rng: Rng,
    record: Mapping[str, object],
) -> None:
    """Fit, apply, place the labels, and write the folder; ``case.json`` last."""
    recipe = setting.recipe
    case, report = prepare_session(
        read.images,
        read.cords,
        recipe,
        seed=setting.seed,
        register=setting.register,
        adjust=lambda geometry: jitter_centerlines(geometry, rng, sd_mm=setting.jitter_mm),
    )
    geometry = case.geometry
    if geometry is None:
        raise DataError("the prepared case has no geometry", file=plan.label)
    covered = np.asarray(case.coverage.any(axis=0), bool)
    label, notes = place_maps(maps, geometry, covered=covered, recipe=recipe)
    case = replace(case, case=plan.label, subject=plan.subject, session=plan.session)
    case.save(folder, dtype=np.float16)
    # a folder without case.json is no case: whoever stops this program leaves none that is half written
    draft = folder / "case.json"
    facts = json.loads(draft.read_text(encoding="utf-8"))
    draft.unlink()
    np.save(folder / "label.npy", label, allow_pickle=False)
    table = maps[0].table
    if len(maps) == 1 and table.is_file():
        lesions = read_detectability(table, recipe.sequence_names)
        (folder / LESIONS_FILE).write_text(json.dumps(lesions, indent=1) + "\n", encoding="utf-8")
    facts |= _facts(read, maps, label=label, geometry=geometry, setting=setting)
    facts |= {**record, "warnings": [*_texts(record.get("warnings")), *report.warnings, *notes]}
    (folder / "case.part").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "case.part").replace(draft)


def _facts(
    read: _Read,
    maps: Sequence[LesionMap],
    *,
    label: npt.NDArray[np.uint8],
    geometry: Geometry,
    setting: Preparation,
) -> dict[str, object]:
    """How a case was made, for ``case.json``: what a model trained on it records, and what was in it."""
    lesion = (label > 0) & (label < IGNORE)
    return {
        "preparation": PREPARATION_VERSION,
        "cord_method": _cord_method(read.sources.values(), setting.jitter_mm),
        "cords": read.sources,
        "lesion_maps": [found.name for found in maps],
        "jitter_mm": setting.jitter_mm,
        "registered": setting.register,
        "recipe_sha256": _digest(recipe_to_json(setting.recipe)),
        "version": __version__,
        "lesions": int(np.unique(label[lesion]).size),
        "volume_mm3": round(float(lesion.sum()) * geometry.grid.voxel_volume, 1),
    }


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _cord_method(sources: Iterable[str], jitter_mm: float) -> str:
    """One of the origins that a bundle records."""
    if any(source == "cord-finder" for source in sources):
        return "cord-finder"
    return "jittered-masks" if jitter_mm > 0 else "masks"


def _publish(partial: Path, folder: Path) -> None:
    """Put a finished folder in the place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    record = partial / "case.json"
    content = record.read_bytes()
    record.unlink()
    partial.replace(folder)
    (folder / "case.part").write_bytes(content)
    (folder / "case.part").replace(folder / "case.json")


def _record_of(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _row(label: str, record: Mapping[str, Any], *, state: State) -> PreparedRow:
    flags = zip(record["sequences"], record["available"], strict=True)
    return PreparedRow(
        session=label,
        state=state,
        sequences="+".join(name for name, there in flags if there),
        lesions=int(record["lesions"]),
        volume_mm3=float(record["volume_mm3"]),
    )


def _fingerprint(plan: Plan, maps: Sequence[LesionMap], setting: Preparation) -> str:
    """Checksum of all that decides a case: rules, versions, and size and time of every file."""
    images = [file.path for sequence in plan.sequences for file in sequence.files]
    masks = [path for _, path in plan.cord_masks] if setting.use_masks else []
    files = [*images, *masks, *(found.path for found in maps), *(str(found.table) for found in maps)]
    needed = setting.finder and len(masks) < len(images)
    finder = load_bundle(setting.finder).inference_sha256 if needed else ""
    return _digest(
        {
            "recipe": recipe_to_json(setting.recipe),
            "versions": [PREPARATION_VERSION, NUMERICAL_VERSION],
            "served": [[s.name, *(file.relative for file in s.files)] for s in plan.sequences],
            "files": [_stamp(Path(path)) for path in files],
            "finder": finder,
            "rules": [setting.jitter_mm, setting.register, setting.seed, setting.use_masks],
        }
    )


def _stamp(path: Path) -> list[object]:
    if not path.is_file():
        return [str(path)]
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# -- many sessions ---------------------------------------------------------------------------------


def prepare_sessions(
    studies: Sequence[Study],
    setting: Preparation,
    *,
    workers: int = 1,
    progress: Callable[[PreparedRow], None] = lambda row: None,
) -> list[PreparedRow]:
    """Prepare many sessions; the table is written anew after each.

    Parameters
    ----------
    studies
        Sessions.
    setting
        How.
    workers
        Processes; 1 works in this one.
    progress
        Called as each session ends.

    Returns
    -------
    One row per session, in the order of ending. A worker that is killed (for want of memory) loses nobody
    else's session: those that were open are tried once more, each alone.
    """
    setting.out.mkdir(parents=True, exist_ok=True)
    for leftover in setting.out.glob(".sub-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    rows: list[PreparedRow] = []
    for row in _rows(studies, setting, workers):
        rows.append(row)
        write_table(setting.out, rows)
        progress(row)
    return rows


def _rows(studies: Sequence[Study], setting: Preparation, workers: int) -> Iterator[PreparedRow]:
    if workers <= 1:
        for study in studies:
            yield prepare_one(study, setting)
        return
    open_ = {study.label: study for study in studies}
    for row in _pooled(list(studies), setting, workers):
        del open_[row.session]
        yield row
    for study in open_.values():
        yield next(_pooled([study], setting, 1), _killed(study.label))


def _pooled(studies: list[Study], setting: Preparation, workers: int) -> Iterator[PreparedRow]:
    """Rows as they come; ends early where a worker died."""
    # started afresh: forking a process whose threads compute is unsafe
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        futures = [pool.submit(prepare_one, study, setting) for study in studies]
        try:
            for future in as_completed(futures):
                try:
                    row = future.result()
                except BrokenProcessPool:
                    continue
                yield row
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _killed(label: str) -> PreparedRow:
    return PreparedRow(
        session=label,
        state="failed",
        cause="the process was killed, most likely because memory ran out",
        remedy="free memory, lower --nprocs, or use a larger machine",
    )


# -- the table -------------------------------------------------------------------------------------


def write_table(out: Path, rows: Iterable[PreparedRow]) -> Path:
    """Write ``prepared.tsv``; rows of other sessions from earlier runs stay while their case is there."""
    mine = {row.session: _cells(row) for row in rows}
    merged = {**_earlier(out), **mine}
    return write_tsv(out, TABLE, [merged[label] for label in sorted(merged)], columns=COLUMNS)


def _cells(row: PreparedRow) -> dict[str, str | float | bool | None]:
    cells = {name: getattr(row, name) for name in COLUMNS}
    cells["state"] = "done" if row.ok else row.state
    if not row.ok:
        cells |= {"sequences": None, "lesions": None, "volume_mm3": None}
    return {name: " ".join(value.split()) or None if isinstance(value, str) else value
            for name, value in cells.items()}  # fmt: skip


def _earlier(out: Path) -> dict[str, dict[str, str | float | bool | None]]:
    path = out / TABLE
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [dict(row) for row in csv.DictReader(handle, delimiter="\t")]
    return {
        row["session"]: {name: row.get(name) for name in COLUMNS}
        for row in rows
        if row.get("session")
        and (row.get("state") != "done" or (out / row["session"] / "case.json").is_file())
    }


# -- errors of a finder, imitated ------------------------------------------------------------------


def jitter_centerlines(geometry: Geometry, rng: Rng, *, sd_mm: float) -> Geometry:
    """Displace each sequence's centerline by a smooth random curve of standard deviation ``sd_mm``."""
    if sd_mm <= 0:
        return geometry
    moved = {key: _jittered(line, rng, sd_mm=sd_mm) for key, line in geometry.centerlines.items()}
    return replace(geometry, centerlines=moved)


def _jittered(line: Centerline, rng: Rng, *, sd_mm: float) -> Centerline:
    nodes = np.arange(line.s_mm[0] - JITTER_PERIOD_MM, line.s_mm[-1] + JITTER_PERIOD_MM, JITTER_PERIOD_MM / 2)
    offsets = rng.normal(0, sd_mm, (2, nodes.size))
    shift = np.stack([np.interp(line.s_mm, nodes, offset) for offset in offsets], axis=1)
    return replace(line, xy_mm=line.xy_mm + shift)


def read_detectability(table: Path, sequences: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Which sequences show each lesion, from the columns ``realised_<sequence>`` of a truth table.

    Returns
    -------
    dict
        Lesion number to ``{"visible": [...], "faint": [...]}``; lesions without such columns are left out.
    """
    out: dict[str, dict[str, list[str]]] = {}
    with table.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            known = {name: row[f"realised_{name}"] for name in sequences if f"realised_{name}" in row}
            if known:
                out[row["index"]] = {
                    degree: [name for name, value in known.items() if value == degree]
                    for degree in ("visible", "faint")
                }
    return out
