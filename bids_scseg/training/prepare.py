"""Sessions of a BIDS dataset with labels to prepared cases: kept where nothing changed, several at once."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bids_scseg import NUMERICAL_VERSION
from bids_scseg.bids.dataset import is_own_dataset
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.references import LesionMap, find_lesion_maps
from bids_scseg.bids.write import write_tsv
from bids_scseg.errors import CordNotFoundError, DataError, MissingInputError, ScsegError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.processes import worker_pool
from bids_scseg.recipe.load import recipe_to_json
from bids_scseg.recipe.study import Plan, Study
from bids_scseg.training.files import digest, read_json
from bids_scseg.training.session import (
    CordFinder,
    CordTool,
    Preparation,
    load_finder,
    publish_case,
    read_session,
    write_case,
)

State = Literal["done", "kept", "refused", "failed"]

TABLE = "prepared.tsv"
WRITE_EVERY_S = 5.0  # writing the table of a large dataset after each session would take longer than them
WRITE_SHARE = 0.05  # of the time at most, however large the table (ours)
COLUMNS = ("session", "state", "cause", "remedy", "sequences", "lesions", "volume_mm3", "warnings")
STRANGERS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRow:
    """How one session ended: a row of ``prepared.tsv``.

    Attributes
    ----------
    session
        ``sub-X[_ses-Y]``.
    state
        ``done``; ``kept`` (an earlier case whose inputs are unchanged); ``refused`` (nothing to prepare: no
        lesion map, no usable image, no cord); ``failed`` (anything else, or an earlier case is still there).
    cause, remedy
        In words; empty where all went well.
    sequences
        Names of those with data, joined by ``+``.
    lesions, volume_mm3
        In prepared space.
    warnings
        What people should know of the case: files that are not used, and what the plan and the fit say.
    earlier
        Of a failed session: whether an earlier case of it was kept.
    """

    session: str
    state: State
    cause: str = ""
    remedy: str = ""
    sequences: str = ""
    lesions: int = 0
    volume_mm3: float = 0.0
    warnings: tuple[str, ...] = ()
    earlier: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a case."""
        return self.state in ("done", "kept")


# -- a group's own data ----------------------------------------------------------------------------


def check_labels(studies: Sequence[Study], setting: Preparation, *, strangers: Sequence[str] = ()) -> None:
    """Refuse labels folders in which no session has a lesion map.

    Parameters
    ----------
    studies
        Sessions.
    setting
        Says where maps are looked for, and which.
    strangers
        What else is known of these folders, for the message: :func:`.references.strange_labels`.

    Raises
    ------
    MissingInputError
        If there are sessions and none has a map. A map that cannot be used is one.
    """
    reasons: list[MissingInputError] = []
    for study in studies:
        try:
            find_lesion_maps(study, setting.labels, desc=setting.desc)
        except MissingInputError as error:
            reasons.append(error)
        except (ScsegError, OSError):
            return  # the session's row will say more
        else:
            return
    if not reasons:
        return
    first = reasons[0]
    raise MissingInputError(
        f"no session has a lesion map here ({len(reasons)} looked at; "
        f"{'; '.join([first.found, *strangers[:STRANGERS_SHOWN]])})",
        file=", ".join(map(str, setting.labels)),
        expected=first.expected,
        remedy=f"correct --labels{' or --lesion-desc' if setting.desc else ''}; else {first.remedy}",
    )


def prepare_one(study: Study, setting: Preparation) -> PreparedRow:
    """Prepare one session; whatever is wrong with it ends in its row, never in an exception.

    A case that is there and was made from the same files by the same rules is kept. One that was made from
    others and cannot be made anew is removed: it is not what the row says. It stays where that is not known,
    as with a labels folder that lacks the session's maps or a disk that does not answer.
    """
    folder = setting.out / study.label
    stale = False
    try:
        task = _task(study, setting)
        known = read_json(folder / "case.json")
        if known.get("fingerprint") == task.fingerprint:
            return _row(study.label, known, state="kept")
        stale = "fingerprint" in known
        return _make(task, setting, folder)
    except ScsegError as error:
        row = failure(study.label, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, other sessions go on
        words = str(error).strip().splitlines() or [""]
        row = PreparedRow(
            session=study.label,
            state="failed",
            cause=": ".join(filter(None, [f"unexpected {type(error).__name__}", words[-1]])),
            remedy="please report it, with the session's headers",
        )
    return _with_earlier(row, folder, stale=stale)


def _with_earlier(row: PreparedRow, folder: Path, *, stale: bool) -> PreparedRow:
    """The row of a session without a new case, with what became of an earlier one."""
    if not read_json(folder / "case.json"):
        return row
    if stale:
        shutil.rmtree(folder, ignore_errors=True)
        why = "it was made from other files, with other options or by another version"
        return replace(row, cause=f"{row.cause}; earlier case removed: {why}")
    also = f"to be without the earlier case, remove {folder.name}"
    return replace(
        row,
        state="failed",
        cause=f"{row.cause}; earlier case kept",
        remedy=f"{row.remedy}; {also}" if row.remedy else also,
        earlier=True,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What one session's case is to be made of."""

    plan: Plan
    maps: tuple[LesionMap, ...]
    notes: tuple[str, ...]
    fingerprint: str


def _task(study: Study, setting: Preparation) -> _Task:
    maps, notes = find_lesion_maps(study, setting.labels, desc=setting.desc)
    roots = dict.fromkeys((*setting.derivatives, *(setting.labels if setting.masks_of_labels else ())))
    own = [root for root in roots if is_own_dataset(root)]  # whose cords are a finder's, but for corrections
    plan = make_plan(
        study,
        setting.recipe,
        filters=setting.filters,
        derivatives=[root for root in roots if root not in own],
        results=own,
    )
    if plan.conflict:
        raise DataError(plan.conflict, expected="one correction of each kind")
    if plan.anchor is None:
        raise _no_usable_image(plan)
    return _Task(plan=plan, maps=maps, notes=notes, fingerprint=_fingerprint(plan, maps, setting))


def _make(task: _Task, setting: Preparation, folder: Path) -> PreparedRow:
    plan, label = task.plan, task.plan.label
    finder: CordFinder | CordTool | None = setting.tool
    if finder is None and setting.finder:
        finder = load_finder(setting.finder, setting.threads)
    read = read_session(plan, finder, use_masks=setting.use_masks)
    partial = setting.out / f".{label}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    record: dict[str, object] = {
        "fingerprint": task.fingerprint,
        "warnings": [*plan.warnings, *task.notes, *read.problems],
    }
    rng = np.random.default_rng([setting.seed, *label.encode()])
    write_case(plan, task.maps, read, setting=setting, folder=partial, rng=rng, record=record)
    publish_case(partial, folder)
    return _row(label, read_json(folder / "case.json"), state="done")


def _no_usable_image(plan: Plan) -> MissingInputError:
    reasons = "; ".join(f"{path.rsplit('/', 1)[-1]}: {reason}" for path, reason in plan.left_out)
    return MissingInputError(
        f"{plan.refusal or 'no image can be used'} ({reasons or 'it has no images'})",
        file=f"{plan.dataset}/sub-{plan.subject}",
        remedy="correct or replace the file, or name files with --bids-filter-file",
    )


def _row(label: str, record: Mapping[str, Any], *, state: State) -> PreparedRow:
    flags = zip(record["sequences"], record["available"], strict=True)
    return PreparedRow(
        session=label,
        state=state,
        sequences="+".join(name for name, there in flags if there),
        lesions=int(record["lesions"]),
        volume_mm3=float(record["volume_mm3"]),
        warnings=tuple(str(text) for text in record.get("warnings", ())),
    )


def _fingerprint(plan: Plan, maps: Sequence[LesionMap], setting: Preparation) -> str:
    """Checksum of all that decides a case: rules, versions, and size and time of every file."""
    images = [file.path for sequence in plan.sequences for file in sequence.files]
    masks = [path for _, path in plan.cord_masks] if setting.use_masks else []
    files = [_stamp(Path(path)) for path in (*images, *masks, *(found.path for found in maps))]
    files += [_stamp(map_.table) if map_.table.is_file() else [str(map_.table)] for map_ in maps]
    finder = _finder_sha256(setting) if len(masks) < len(images) else ""
    by_sct = {"sct masks": list(plan.sct_masks)} if setting.use_masks and plan.sct_masks else {}
    return digest(
        {
            "recipe": recipe_to_json(setting.recipe),
            "versions": [PREPARATION_VERSION, NUMERICAL_VERSION],
            "served": [[s.name, *(file.relative for file in s.files)] for s in plan.sequences],
            "files": files,
            "finder": finder,
            "rules": [setting.jitter_mm, setting.register, setting.seed, setting.use_masks],
            **by_sct,
        }
    )


def _finder_sha256(setting: Preparation) -> str:
    """Checksum of what finds cords in images without a mask; empty where nothing does."""
    if setting.tool is not None:
        return setting.tool.sha256
    return load_bundle(setting.finder).inference_sha256 if setting.finder else ""


def _stamp(path: Path) -> list[object]:
    status = path.stat()  # a file that is gone has not changed: OSError
    return [str(path), status.st_size, status.st_mtime_ns]


# -- many sessions ---------------------------------------------------------------------------------


def prepare_sessions(
    studies: Sequence[Study],
    setting: Preparation,
    *,
    workers: int = 1,
    progress: Callable[[PreparedRow], None] = lambda row: None,
) -> list[PreparedRow]:
    """Prepare many sessions; the table is written anew every few seconds and at the end, however that comes.

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
    due = 0.0
    try:
        for row in _rows(studies, setting, workers):
            rows.append(row)
            if (start := time.monotonic()) >= due:
                write_table(setting.out, rows)
                took = time.monotonic() - start
                due = start + max(WRITE_EVERY_S, took / WRITE_SHARE)
            progress(row)
    finally:
        if rows:
            write_table(setting.out, rows)
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
        alone = next(_pooled([study], setting, 1), None)
        folder = setting.out / study.label
        yield alone or _with_earlier(_killed(study.label), folder, stale=False)


def _pooled(studies: list[Study], setting: Preparation, workers: int) -> Iterator[PreparedRow]:
    """Rows as they come; ends early where a worker died."""
    with worker_pool(workers) as pool:
        for future in as_completed([pool.submit(prepare_one, study, setting) for study in studies]):
            try:
                row = future.result()
            except BrokenProcessPool:
                continue
            yield row


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
    cells = {name: getattr(row, name) for name in COLUMNS} | {"warnings": "; ".join(row.warnings)}
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
