"""Files that have the same bytes whenever they have the same content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

#: nibabel has no type annotations.
_nifti: Any = nib.Nifti1Image

#: Noise hardly compresses: a low level is as small as a high one and several times faster.
GZIP_LEVEL = 3


def write_nifti(path: Path, data: npt.NDArray[Any], affine: npt.ArrayLike) -> None:
    """Write a gzipped NIfTI-1 with sform and qform, without a time stamp.

    Parameters
    ----------
    path
        Ends in ``.nii.gz``; its folder is created.
    data
        ``(i, j, k)``; its dtype is the stored one.
    affine
        Index → world RAS+ mm, ``(4, 4)``.
    """
    # nibabel writes Fortran order slice by slice, which takes twice as long from other layouts
    image: Any = _nifti(np.asfortranarray(data), np.asarray(affine, float))
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tsv(path: Path, columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    """Write a table; absent, empty and undefined values are ``n/a``, floats have four decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "n/a"
    if isinstance(value, float):
        return f"{value:.4f}" if np.isfinite(value) else "n/a"
    return str(value)
