"""What a run needs of memory and disk, what is there, and what to tell before it starts."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bids_scseg.bids import checksums
from bids_scseg.bids.memory import BASE_GB, LATE_GB, LEAST_INFERENCE_GB, SMALLEST_GB, prepared_voxels
from bids_scseg.errors import DiskFullError, ScsegError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan

# Bytes on disk, by the same runs: work folders of 15 to 83 MB, outputs of 2 to 20 MB.
WORK_BYTES_PER_SEQUENCE, WORK_BYTES_PER_PREPARED_VOXEL, WORK_BYTES_PER_VOXEL = 5, 14, 2
OUTPUT_BYTES, OUTPUT_BYTES_PER_VOXEL = 10e6, 1
SURE = 0.5  # share of the estimated disk space without which a run is refused; below all of it, it is warned
MEMORY_INFO = Path("/proc/meminfo")
CONTROL_GROUPS, CONTROL_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """Bytes that a run will write below a folder."""

    folder: Path
    needed: float
    free: float

    def __str__(self) -> str:
        return f"about {_gb(self.needed)} will be written to {self.folder}, {_gb(self.free)} are free"


def worker_gb(plan: Plan, *, cord_method: str = "builtin") -> float:
    """Largest memory of the worker that runs a session, GB: that of its most demanding node.

    The network's is the inference process's; the Spinal Cord Toolbox, where it finds cords for images without
    a mask (`cord_method` ``sct``), runs below the worker and counts.
    """
    masked = dict(plan.cord_masks)
    images = [file.relative for file in _files(plan)]
    if cord_method != "sct" or plan.anchor is None or all(name in masked for name in images):
        return plan.memory_gb
    return max(plan.memory_gb, BASE_GB + LATE_GB)


def disk_bytes(plan: Plan, recipe: Recipe) -> tuple[float, float]:
    """Bytes that a session writes to (work folder, output folder); zeros if it is refused."""
    if plan.anchor is None:
        return 0.0, 0.0
    voxels, sequences = _voxels(plan), len(recipe.sequence_names)
    each = WORK_BYTES_PER_PREPARED_VOXEL + WORK_BYTES_PER_SEQUENCE * sequences
    work = each * prepared_voxels(_files(plan), recipe) + WORK_BYTES_PER_VOXEL * voxels
    return work, OUTPUT_BYTES + OUTPUT_BYTES_PER_VOXEL * voxels


def bytes_left(options: RunOptions, plan: Plan, recipe: Recipe) -> tuple[float, float]:
    """Bytes that a session adds to (work folder, output folder), beside what is there already.

    A finished session adds nothing where its files are: each is replaced by one of about the same size.
    """
    work, out = disk_bytes(plan, recipe)
    in_work = folder_bytes(options.work / plan.label)
    if is_finished(options.output_dir, plan.label):
        return (0.0 if in_work else work), 0.0
    folder = options.output_dir / f"sub-{plan.subject}" / (f"ses-{plan.session}" if plan.session else "")
    return max(0.0, work - in_work), max(0.0, out - folder_bytes(folder / "anat"))


def is_finished(out: Path, label: str) -> bool:
    """Whether all files of a session's list are there; a session that is unfinished has no list."""
    try:
        listed = checksums.read_list(out, label)
    except ScsegError:  # damaged
        return False
    return bool(listed) and all((out / path).is_file() for path in listed)


def disk_needs(options: RunOptions, plans: Sequence[Plan], recipe: Recipe) -> tuple[DiskNeed, ...]:
    """What a run will still write, for each file system: what earlier runs have written is taken off."""
    work, out = [], 0.0
    for plan in plans:
        in_work, in_out = bytes_left(options, plan, recipe)
        work.append(in_work)
        out += in_out
    if options.clean_workdir:  # only those of the sessions that run at once are there at one time
        work = sorted(work, reverse=True)[: options.workers]
    places = {options.output_dir: out, options.work: sum(work)}
    needs: dict[int, DiskNeed] = {}
    for folder, needed in places.items():
        base = _existing(folder)
        device = base.stat().st_dev
        before = needs[device].needed if device in needs else 0.0
        free = float(shutil.disk_usage(base).free)
        needs[device] = DiskNeed(folder=base, needed=before + needed, free=free)
    return tuple(needs.values())


def check_disk(needs: Iterable[DiskNeed]) -> tuple[str, ...]:
    """Warnings about disk space.

    Raises
    ------
    DiskFullError
        If there is less than half of what the run will write, by estimate.
    """
    warnings = []
    for need in needs:
        if need.free < SURE * need.needed:
            raise DiskFullError(
                str(need),
                remedy="free space, name another folder with --work-dir, add --clean-workdir, or run fewer "
                "sessions at a time",
            )
        if need.free < need.needed:
            warnings.append(f"{need}: the disk may become full")
    return tuple(warnings)


def check_memory(plans: Iterable[Plan], *, limit_gb: float, cord_method: str = "builtin") -> tuple[str, ...]:
    """Warnings about sessions that need more memory than there is."""
    found = []
    for plan in plans:
        need = worker_gb(plan, cord_method=cord_method) + plan.inference_gb
        if plan.anchor is not None and need > limit_gb:
            found.append(
                f"{plan.label} needs about {need:.1f} GB of memory, {limit_gb:.1f} GB are there: "
                "it may be killed"
            )
    return tuple(found)


def memory_gb(options: RunOptions) -> float:
    """Memory that a run may use, GB: as asked for, else what can be had now."""
    return options.mem_gb or free_memory_gb()


def worker_count(options: RunOptions, total: int) -> int:
    """Sessions at once, at most: as asked for, as the smallest would fit into memory, as there are."""
    fitting = (memory_gb(options) - LEAST_INFERENCE_GB) / SMALLEST_GB
    return max(1, int(min(options.workers, fitting, total)))


def free_memory_gb() -> float:
    """Memory that can be had now, GB, within the limit of container or job; infinite where nothing tells."""
    return min(_meminfo("MemAvailable"), _limit())


def all_memory_gb() -> float:
    """Memory of this machine or container, GB; infinite where the system does not tell."""
    return min(_meminfo("MemTotal") + _meminfo("SwapTotal", absent=0.0), _limit())


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; 0 if there is none."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(root, name).lstat().st_size
    return total


def _files(plan: Plan) -> list[ImageFile]:
    return [file for sequence in plan.sequences for file in sequence.files]


def _voxels(plan: Plan) -> int:
    return sum(math.prod(file.grid.shape) for file in _files(plan) if file.grid is not None)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _meminfo(key: str, *, absent: float = math.inf) -> float:
    with suppress(OSError, ValueError, IndexError):
        for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / 1e9
    return absent


def _limit() -> float:
    """Least limit of the control groups around this process, as containers and schedulers set them, GB."""
    limits = [math.inf]
    with suppress(OSError):
        for line in CONTROL_GROUPS.read_text(encoding="utf-8").splitlines():
            limits += _group_limits(line)
    return min(limits) / 1e9


def _group_limits(line: str) -> list[float]:
    """Limits in bytes of a line of ``/proc/self/cgroup``; of both versions of control groups."""
    _, controllers, path = line.split(":", 2)
    if controllers and "memory" not in controllers.split(","):
        return []
    root = CONTROL_ROOT / "memory" if controllers else CONTROL_ROOT
    name = "memory.limit_in_bytes" if controllers else "memory.max"
    group, limits = PurePosixPath(path.lstrip("/")), []
    for folder in (group, *group.parents):  # in a container, what is told is not always below its root
        with suppress(OSError, ValueError):  # "max": no limit
            limits.append(float(int((root / folder / name).read_text(encoding="ascii"))))
    return limits


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
