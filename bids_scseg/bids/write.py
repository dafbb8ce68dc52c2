"""Writing outputs: whole or not at all, repeatable to the byte, never outside the output folder."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bids_scseg import files
from bids_scseg.bids.names import sidecar
from bids_scseg.errors import BusyError, OutputError
from bids_scseg.space.grid import Grid

BIDS_VERSION = "1.10.0"
APP_NAME = "bids_scseg"
GZIP_LEVEL = 6  # gzip's own default; 9 costs three times the time for 1 % of the size
FLOAT_DIGITS = 6  # significant digits in tables: finer than any measurement here
JSON_DIGITS = 12  # geometry goes through JSON: 1e-6 mm at 1000 mm needs nine
MISSING = "n/a"  # BIDS
MAX_UINT16 = 65535
# Validators must not judge these. `figures/` with a slash would not work, and `figures` does. What readers
# corrected is theirs, whatever its name and sidecar.
IGNORED = (
    "*.html", "figures", "group", "work", "CITATION.md", "*_geometry.json", "*_summary.json",
    "*_desc-manual*",
)  # fmt: skip

TableValue = str | float | bool | None


def safe_join(root: str | Path, relative: str) -> Path:
    """Absolute path of `relative` below `root`.

    Raises
    ------
    OutputError
        If it is absolute, contains ``..``, or leads out of `root` through a link.
    """
    parts = PurePosixPath(relative)
    base = Path(root).resolve()
    path = base.joinpath(*parts.parts)
    if not relative or parts.is_absolute() or ".." in parts.parts or not path.resolve().is_relative_to(base):
        raise OutputError(
            f"the output {relative!r} would lie outside",
            file=base,
            expected="a path inside the output folder",
        )
    return path


def write_bytes(root: str | Path, relative: str, content: bytes) -> Path:
    """Write a file atomically: a reader sees the old content, the new content, or no file, never a part.

    Raises
    ------
    OutputError
        If the folder or file cannot be written.
    """
    return files.write_bytes(safe_join(root, relative), content)


def write_text(root: str | Path, relative: str, text: str) -> Path:
    """Write UTF-8 text, atomically; see :func:`bids_scseg.files.write_text`."""
    return write_bytes(root, relative, files.encode(text))


def write_json(root: str | Path, relative: str, data: Mapping[str, object]) -> Path:
    """Write JSON, atomically: indented, keys in the order given, NaN and infinity as null."""
    text = json.dumps(_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(root, relative, text + "\n")


def write_tsv(
    root: str | Path,
    relative: str,
    rows: Iterable[Mapping[str, TableValue]],
    *,
    columns: Sequence[str],
) -> Path:
    """Write a table, atomically.

    Parameters
    ----------
    root, relative
        Output folder and path below it.
    rows
        Column name to value; absent, None and NaN become ``n/a``. No rows: the header alone.
    columns
        Names in order; other keys of the rows are an error.

    Raises
    ------
    OutputError
        If a row has a key that is no column, or the file cannot be written.
    """
    lines = ["\t".join(columns)]
    for row in rows:
        strangers = sorted(set(row) - set(columns))
        if strangers:
            raise OutputError(f"column {strangers[0]!r} is not declared", file=relative)
        lines.append("\t".join(_cell(row.get(column)) for column in columns))
    return write_text(root, relative, "\n".join(lines) + "\n")


def write_image(
    root: str | Path,
    relative: str,
    data: npt.NDArray[np.generic],
    *,
    grid: Grid,
    metadata: Mapping[str, object],
) -> Path:
    """Write an image and its sidecar, the sidecar first, each atomically and repeatable to the byte.

    Parameters
    ----------
    root, relative
        Output folder and path below it, ending in ``.nii.gz``.
    data : (i, j, k)
        Booleans become uint8, other integers uint8 or uint16 (int32 beyond 65535 or below 0), real numbers
        float32.
    grid
        Its lattice; written as sform and qform with code 1 (scanner).
    metadata
        Content of the sidecar.

    Raises
    ------
    OutputError
        If the shapes disagree or a file cannot be written.
    """
    if data.shape != grid.shape:
        raise OutputError(f"data of shape {data.shape}", file=relative, expected=f"{grid.shape}, as its grid")
    image = nib.Nifti1Image(_stored(data), grid.affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.set_sform(grid.affine, code=1)  # type: ignore[no-untyped-call]
    image.set_qform(grid.affine, code=1)  # type: ignore[no-untyped-call]
    packed = gzip.compress(image.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0)
    write_json(root, sidecar(relative), metadata)
    return write_bytes(root, relative, packed)


def rebuild(root: str | Path, lock: str, make: Callable[[], object]) -> None:
    """Make a file anew from many others, by one process at a time, without waiting for another.

    Whoever finds another at it leaves a mark beside the lock, upon which that one does it once more: what
    was written before the call is in the file when the last of them has returned.

    Parameters
    ----------
    root, lock
        Output folder and path of the lock below it, ending in ``.lock``.
    make
        Reads the others and writes the file.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    place = safe_join(root, lock)
    asked = place.with_suffix(".asked")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        asked.touch()
    except OSError as error:
        raise files.write_error(error, asked) from error
    # Looked at only after the lock is let go: a mark that came meanwhile is of one that was turned away.
    while asked.exists():
        try:
            with files.lock(place):
                asked.unlink(missing_ok=True)
                make()
        except BusyError:
            return


def _stored(data: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The data in the smallest type that everybody's tools read."""
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind not in "iu":
        return data.astype(np.float32)
    low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
    if low < 0 or high > MAX_UINT16:
        return data.astype(np.int32)
    return data.astype(np.uint8 if high < 256 else np.uint16)


def _cell(value: TableValue) -> str:
    value = _scalar(value)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{FLOAT_DIGITS}g}"
    return " ".join(str(value).split()) or MISSING


def _scalar(value: object) -> str | float | int | bool | None:
    """A plain Python scalar; NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _jsonable(data: object) -> object:
    """Plain data with numbers rounded to the digits that mean something."""
    if isinstance(data, Mapping):
        return {str(key): _jsonable(value) for key, value in data.items()}
    if isinstance(data, np.ndarray):
        return _jsonable(data.tolist())
    if isinstance(data, list | tuple | set | frozenset):
        items = sorted(data) if isinstance(data, set | frozenset) else data
        return [_jsonable(value) for value in items]
    value = _scalar(data)
    return float(f"{value:.{JSON_DIGITS}g}") if isinstance(value, float) else value
