"""The options of a run: one frozen record, passed explicitly."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.files import read_toml

Level = Literal["participant", "group"]
OutputSpaces = Literal["anchor", "all"]
Levels = Literal["auto", "labels", "sct", "none"]

DEFAULT_MODEL = "cord-lesion"
#: Nipype's plugins that wait for what they started; its graph plugins hand over all nodes and go.
PLUGINS = ("Linear", "MultiProc", "SLURM", "SGE", "PBS", "LSF", "OAR", "Condor")
CORD_METHODS = ("auto", "sct", "builtin")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Everything a run was asked to do; written to ``logs/`` as TOML and readable back by ``--config-file``.

    Attributes
    ----------
    bids_dir, output_dir, level
        The BIDS App's three positional arguments; ``bids_dir`` is None for ``-`` (group level only).
    participants, sessions, exclude
        BIDS labels without prefix; empty = all.
    filter_file
        JSON that overrides which files serve which sequence.
    sequences
        Restrict the recipe to these sequences; empty = all.
    derivatives
        (name, folder) pairs with the user's cord masks and disc or vertebra labels.
    work_dir, clean_workdir
        Where intermediate files go, and whether they are removed after success.
    nprocs, omp_nthreads, mem_gb
        Sessions at once, threads of the network, memory limit in GB; 0 = from the machine.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    follow_links
        Whether images may be links to places outside of the dataset.
    geometry
        Derivatives of an earlier run: sessions with a geometry there are prepared by it, without a fit.
    output_spaces
        ``anchor``: results on the anchor's grid; ``all``: on every image's as well.
    model
        Name of a packaged model bundle, or path of one.
    cord
        ``auto``, ``sct``, ``builtin``, or the name of a derivatives folder with masks.
    levels
        Where vertebral levels come from: ``labels`` (the user's), ``sct``, ``none``, or ``auto``: labels
        where a session has some, else SCT where it is installed.
    threshold
        Probability from which a voxel is lesion; None = the model bundle's.
    seed_threshold
        Lesions whose probability nowhere reaches it are dropped (0: none); None = the model bundle's rule.
    min_volume
        Smaller lesions are dropped, mm³; None = the model bundle's rule.
    random_seed, deterministic
        Seed of everything random (registration is always repeatable), and whether the network runs on one
        thread, so that results do not depend on the number of cores.
    plugin, plugin_args
        Nipype's plugin that runs a session's graph, and its arguments as ``key=value``; empty: node after
        node, in the session's own process.
    """

    bids_dir: Path | None
    output_dir: Path
    level: Level
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    filter_file: Path | None = None
    sequences: tuple[str, ...] = ()
    derivatives: tuple[tuple[str, Path], ...] = ()
    work_dir: Path | None = None
    clean_workdir: bool = False
    nprocs: int = 0
    omp_nthreads: int = 0
    mem_gb: float = 0.0
    device: str = "auto"
    output_spaces: OutputSpaces = "anchor"
    model: str = DEFAULT_MODEL
    cord: str = "auto"
    levels: Levels = "auto"
    threshold: float | None = None
    seed_threshold: float | None = None
    min_volume: float | None = None
    geometry: Path | None = None
    dry_run: bool = False
    json_plan: Path | None = None
    skip_bids_validation: bool = False
    follow_links: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    plugin: str = ""
    plugin_args: tuple[str, ...] = ()
    random_seed: int = 0
    deterministic: bool = False
    verbose: int = 0

    def __post_init__(self) -> None:
        """Make all paths absolute: every graph node works in a folder of its own."""
        for name in ("bids_dir", "output_dir", "filter_file", "geometry", "work_dir", "json_plan"):
            path = getattr(self, name)
            if path is not None and str(path) != "-":
                object.__setattr__(self, name, path.absolute())
        folders = tuple((name, folder.absolute()) for name, folder in self.derivatives)
        object.__setattr__(self, "derivatives", folders)

    @property
    def workers(self) -> int:
        """Sessions processed at once."""
        return self.nprocs or available_cpus()

    @property
    def threads(self) -> int:
        """Threads of the inference process; one if results must not depend on their number."""
        return 1 if self.deterministic else self.omp_nthreads or available_cpus()

    @property
    def work(self) -> Path:
        """Work directory."""
        return self.work_dir or self.output_dir / "work"

    def to_toml(self) -> str:
        """This record as TOML; unset options are left out."""
        lines = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None and value != ():
                lines.append(f"{item.name} = {_toml(value)}")
        return "\n".join(lines) + "\n"


_NOT_NEGATIVE: tuple[Callable[[Any], bool], str] = (lambda value: value >= 0, "0 or more")
# What the command line checks when it parses, for values that come from a file.
RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (lambda value: 0 < value < 1, "between 0 and 1"),
    "seed_threshold": (lambda value: 0 <= value < 1, "0 or more, less than 1"),
    "output_spaces": (lambda value: value in get_args(OutputSpaces), "anchor or all"),
    "levels": (lambda value: value in get_args(Levels), "auto, labels, sct or none"),
    "plugin": (lambda value: value in ("", *PLUGINS), ", ".join(PLUGINS)),
    "min_volume": (lambda value: 0 <= value < math.inf, "0 or more, in mm³"),
    **dict.fromkeys(("nprocs", "omp_nthreads", "mem_gb", "random_seed"), _NOT_NEGATIVE),
}
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and a container's quota where the system tells."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no quota ("max"), or a system without cgroups
    return max(count, 1)


def read_config(path: Path) -> dict[str, Any]:
    """Options from a TOML file, as keyword arguments of :class:`RunOptions`.

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is not TOML, or has unknown names or values of the wrong type or out of range.
    """
    if not path.exists():
        raise MissingInputError("no such file", file=path, expected="a TOML file of options")
    data = read_toml(path)
    known = {item.name: str(item.type) for item in dataclasses.fields(RunOptions)}
    options = {}
    for key, value in data.items():
        name = key.replace("-", "_")
        if name not in known:
            raise DataError(f"unknown option {key!r}", file=path, expected=", ".join(sorted(known)))
        options[name] = _typed(name, known[name], value, path)
        fits, expected = RANGES.get(name, (None, ""))
        if fits is not None and not fits(options[name]):
            raise DataError(f"option {name!r} has value {value!r}", file=path, expected=expected)
    return options


def _typed(name: str, kind: str, value: object, path: Path) -> object:
    ok: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}
    if kind.startswith("tuple[tuple"):
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return tuple((str(key), Path(item)) for key, item in value.items())
    elif kind.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind.startswith("Path"):
        if isinstance(value, str):
            return Path(value)
    else:
        base = kind.split(" |")[0]
        allowed = ok.get(base, (str,))
        if isinstance(value, allowed) and (base == "bool" or not isinstance(value, bool)):
            return value
    raise DataError(f"option {name!r} has value {value!r:.60}", file=path, expected=kind)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(str(v))}" for k, v in value) + " }"
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    text = "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text)
    return f'"{text}"'
