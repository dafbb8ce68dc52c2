"""NIfTI headers and images, read with distrust: what is wrong with a file becomes one clear line."""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError, ImageError, MissingInputError
from bids_scseg.space.grid import Grid

LOG = logging.getLogger(__name__)

Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]

MAX_VOXELS = 2**31  # beyond this NIfTI-1 tools overflow, and no anatomical scan comes near
MAX_BYTES = 4 * 10**9  # of one image as float32: the memory limit of a whole session (ours)
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 50.0  # outside: surely a wrong unit (ours)
USUAL_SPACING_MM = (0.1, 20.0)  # outside: flagged (ours; slices 16.5 mm apart do exist)
WARN_SHIFT_MM, WARN_ANGLE_DEG = 1.0, 1.0  # sform against qform: about a voxel
# Refused: half of the 24 mm window round the cord, where another sequence's cord leaves the window.
MAX_SHIFT_MM, MAX_ANGLE_DEG = 12.0, 10.0
WARN_SHEAR_DEG, MAX_SHEAR_DEG = 0.1, 2.0  # axes further from perpendicular are no scanner's lattice (ours)
MAX_BAD_FRACTION = 0.01  # NaN or infinite voxels that are replaced; more are refused (ours)
HEADER_BYTES = 540  # of NIfTI-2, the longer one
MAX_OFFSET = 100_000_000  # bytes before the voxels; header extensions hold some hundred kB (ours)
MAX_TRAILING = 16_000_000  # bytes after the voxels that are read to reach the checksum (ours)
READ_ERRORS = (
    OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError,
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
)  # fmt: skip
HEADER_ERRORS = (*READ_ERRORS, LookupError, ArithmeticError)
ECHO_SUFFIXES = frozenset(
    {"T2star", "T2starw", "MEGRE", "MERGE"}
)  # of which some scanners keep all echoes in a file
REEXPORT = "convert it again from the scanner's DICOM files, for example with dcm2niix"
REFETCH = "copy or download the file again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What planning needs to know of an image file.

    Attributes
    ----------
    grid
        Lattice, by the sform where there is one (nibabel's rule), else by the qform.
    warnings
        Matters that do not forbid the use of the image, one sentence each.
    """

    grid: Grid
    warnings: tuple[str, ...] = ()


def read_header(path: str | Path) -> Grid:
    """Lattice of an image, from its header alone.

    Parameters
    ----------
    path
        NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Grid
        Three-dimensional lattice, index to world RAS+ mm; trailing dimensions of 1 are dropped.

    Raises
    ------
    ImageError, MissingInputError
        See :func:`inspect_header`.
    """
    return inspect_header(path).grid


def inspect_header(path: str | Path) -> Header:
    """Read and check a header without loading data.

    Raises
    ------
    MissingInputError
        If there is no such file (or a link whose target is absent).
    ImageError
        If the file is not NIfTI, is truncated, has a wrong number of dimensions, one slice, absurd
        sizes, unusable voxel sizes, no or contradicting orientation, or a data type that is no intensity.
    """
    file = Path(path)
    block = _first_bytes(file)
    try:
        return _inspect(file, block)
    except GeometryError as error:
        raise ImageError(error.found, file=file, expected=error.expected, remedy=REEXPORT) from error
    except HEADER_ERRORS as error:  # what no check below has foreseen is still this file's trouble alone
        raise ImageError(f"unusable header ({error})", file=file, remedy=REEXPORT) from error


def _inspect(file: Path, block: bytes) -> Header:
    header = _parse(file, block)
    shape = _checked_shape(file, header)
    _check_type(file, header)
    _check_offset(file, header)
    _check_length(file, header)
    spacing_warnings = _check_spacing(file, header)
    affine, warnings = _checked_affine(file, header, shape)
    return Header(grid=Grid(shape=shape, affine=affine), warnings=(*spacing_warnings, *warnings))


def read_image(path: str | Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """Load an image as float32 with its lattice.

    Returns
    -------
    data : (i, j, k) float32
        Intensities in the file's own index order, finite. A few NaN or infinite voxels (at most 1 %) are
        replaced by the lowest finite intensity, which is logged as a warning.
    grid : Grid
        Lattice of the data.

    Raises
    ------
    ImageError, MissingInputError
        As :func:`inspect_header`; also if voxels cannot be decompressed, more than 1 % of them are not
        finite, or all have the same value.
    """
    file = Path(path)
    values, grid = read_values(file)
    data = _finite(file, values)
    if data.min() == data.max():
        raise ImageError(
            f"every voxel has the value {data.flat[0]:g}",
            file=file,
            expected="an image with contrast",
            remedy="check the conversion, or exclude the file",
        )
    return data, grid


def read_values(path: str | Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """Load voxels as they are, (i, j, k) float32, whatever their values, with their lattice.

    Raises
    ------
    ImageError, MissingInputError
        As :func:`inspect_header`; also if voxels cannot be decompressed.
    """
    file = Path(path)
    grid = inspect_header(file).grid
    try:
        with np.errstate(all="ignore"):  # a scale beyond float32 gives infinite voxels: the caller looks
            array = np.asarray(_load(file).dataobj, dtype=np.float32)
    except READ_ERRORS as error:
        raise ImageError(
            f"voxels cannot be read ({error})", file=file, expected="an undamaged file", remedy=REFETCH
        ) from error
    return array.reshape(grid.shape), grid


def _load(file: Path) -> Any:
    """The image; a compressed one is read to its end, where the checksum tells of damage in the middle."""
    if not file.name.lower().endswith(".gz"):
        return nib.load(file)
    with gzip.open(file) as stream:
        header = _parse(file, start := stream.read(HEADER_BYTES))
        content = start + stream.read(max(_promised_length(header) - len(start), 0))
        trailing = 0
        while piece := stream.read(1 << 20):  # not kept: a small file can unpack to any size
            trailing += len(piece)
            if trailing > MAX_TRAILING:
                raise ValueError(f"more than {MAX_TRAILING} bytes follow the voxels")
    second = isinstance(header, nib.Nifti2Header)
    return (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)


def _first_bytes(file: Path) -> bytes:
    """First bytes of the uncompressed file, at most the length of the longest header."""
    if not os.path.isfile(file):  # noqa: PTH113 - Path.is_file() raises for names with a null byte
        if os.path.exists(file):  # noqa: PTH110 - likewise
            raise ImageError("no regular file", file=file, expected="a NIfTI image", remedy="remove it")
        state = "a link whose target is absent" if file.is_symlink() else "no such file"
        raise MissingInputError(state, file=file, remedy="fetch it (datalad get, git annex get) or remove it")
    named_gz = file.name.lower().endswith(".gz")
    try:
        with file.open("rb") as stream:
            start = stream.read(2)
        if not start:
            raise ImageError("an empty file", file=file, expected="a NIfTI image", remedy=REFETCH)
        is_gz = start == b"\x1f\x8b"
        if is_gz != named_gz:
            raise ImageError(
                f"the content is {'' if is_gz else 'not '}gzip-compressed, against the file's name",
                file=file,
                expected="a gzip file for .nii.gz and a plain one for .nii",
                remedy="compress or rename it",
            )
        with gzip.open(file) if is_gz else file.open("rb") as stream:
            return stream.read(HEADER_BYTES)
    except READ_ERRORS as error:
        raise ImageError(f"cannot be read ({error})", file=file, remedy=REFETCH) from error


def _parse(file: Path, block: bytes) -> Any:
    """The header as stored, without nibabel's silent repairs (it would turn a zero voxel size into 1)."""
    kinds: tuple[tuple[Any, tuple[bytes, bytes]], ...] = (
        (nib.Nifti1Header, (b"n+1\x00", b"ni1\x00")),
        (nib.Nifti2Header, (b"n+2\x00", b"ni2\x00")),
    )
    for cls, magics in kinds:
        size = cls.sizeof_hdr
        magic = block[344:348] if size == 348 else block[4:8]
        if len(block) < size or magic not in magics:
            continue
        if magic == magics[1]:
            raise ImageError("half of an .hdr/.img pair", file=file, expected="one .nii or .nii.gz file")
        return cls(block[:size], check=False)
    raise ImageError(
        f"not a NIfTI file ({len(block)} bytes of header read)" if len(block) < 348 else "not a NIfTI file",
        file=file,
        expected="NIfTI-1 or NIfTI-2",
        remedy=REEXPORT,
    )


def _checked_shape(file: Path, header: Any) -> Shape:
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ImageError(f"dimensions {dims} make no sense", file=file, expected="3 sizes", remedy=REEXPORT)
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    text = " x ".join(map(str, shape))
    if len(shape) > 3:
        raise ImageError(
            f"{len(shape)} dimensions ({text})",
            file=file,
            expected="one 3-D volume",
            remedy=_as_one_volume(file),
        )
    if len(shape) < 3 or min(shape) < 2:
        raise ImageError(f"a single slice ({text})", file=file, expected="a volume of 2 slices or more")
    if math.prod(shape) > MAX_VOXELS or 4 * math.prod(shape) > MAX_BYTES:
        raise ImageError(
            f"{text} voxels, {4 * math.prod(shape) / 1e9:.1f} GB in memory",
            file=file,
            expected=f"at most {MAX_BYTES / 1e9:.0f} GB",
            remedy="check the header; it may be corrupt",
        )
    return shape[0], shape[1], shape[2]


def _as_one_volume(file: Path) -> str:
    """What to do about a file of several volumes: those of a T2* scan are echoes as a rule."""
    if file.name.split(".")[0].rsplit("_", 1)[-1] in ECHO_SUFFIXES:
        return (
            "combine the echoes into one volume by the root of the mean of their squares "
            "(sct_maths -i IN -rms t -o OUT), or split it into one file per echo"
        )
    return "split it into one file per volume, or average the volumes"


def _check_type(file: Path, header: Any) -> None:
    code = int(header["datatype"])
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (nib.spatialimages.HeaderDataError, KeyError):  # KeyError: a code that is none
        dtype = np.dtype("V")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        codes = nib.nifti1.data_type_codes.label
        label = codes.get(code, "unknown") if code else "none"
        raise ImageError(
            f"data type {label} (code {code})",
            file=file,
            expected="integer or real intensities",
            remedy="export the magnitude image",
        )


def _check_offset(file: Path, header: Any) -> None:
    """Refuse a start of the voxels within the header, where it would be read as intensities.

    Also one for which a whole decompression bomb would have to be unpacked.
    """
    offset, first = float(header["vox_offset"]), int(header.single_vox_offset)
    if not math.isfinite(offset) or not first <= offset <= MAX_OFFSET:
        within = ", within the header" if 0 <= offset < first else ""
        raise ImageError(
            f"voxels start at byte {offset:g}{within}",
            file=file,
            expected=f"{first} to {MAX_OFFSET}",
            remedy=REEXPORT,
        )


def _promised_length(header: Any) -> int:
    """Bytes that a file has by its header, which :func:`_check_offset` has seen."""
    voxels = math.prod(int(size) for size in header.get_data_shape())
    return int(float(header["vox_offset"]) + voxels * np.dtype(header.get_data_dtype()).itemsize)


def _check_length(file: Path, header: Any) -> None:
    """Compare the file's length with what the header promises, without decompressing if gzip agrees."""
    needed = _promised_length(header)
    found = _uncompressed_length(file, needed)
    if found < needed:
        raise ImageError(
            f"truncated: {found} bytes of image file",
            file=file,
            expected=f"{needed} bytes by its header",
            remedy=REFETCH,
        )


def _uncompressed_length(file: Path, needed: int) -> int:
    """Length in bytes; reading stops beyond `needed`.

    A gzip file ends with its uncompressed length modulo 2^32. Where that number does not agree (files in
    several members, or files cut short), the stream is decompressed in small pieces to see.
    """
    if not file.name.lower().endswith(".gz"):
        return file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        stated = int(struct.unpack("<I", stream.read(4))[0])
    if stated == needed % 2**32:
        return needed
    total = 0
    try:
        with gzip.open(file) as stream:
            # read1, as read() drops what it has at a cut; beyond `needed` once, where the checksum stands.
            while total <= needed and (piece := stream.read1(1 << 20)):
                total += len(piece)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ImageError(f"cannot be read ({error})", file=file, remedy=REFETCH) from error
    except READ_ERRORS:
        pass  # the length reached so far tells
    return total


def _check_spacing(file: Path, header: Any) -> list[str]:
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1:4]
    text = " x ".join(f"{size:g}" for size in pixdim)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise ImageError(
            f"voxel sizes {text} mm", file=file, expected="three positive numbers", remedy=REEXPORT
        )
    if pixdim.min() < MIN_SPACING_MM or pixdim.max() > MAX_SPACING_MM:
        raise ImageError(
            f"voxel sizes {text} mm",
            file=file,
            expected=f"{MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm (are the sizes in another unit?)",
            remedy=REEXPORT,
        )
    low, high = USUAL_SPACING_MM
    unusual = pixdim.min() < low or pixdim.max() > high
    return [f"unusual voxel sizes {text} mm"] if unusual else []


def _checked_affine(file: Path, header: Any, shape: Shape) -> tuple[Affine, list[str]]:
    """The affine that nibabel would use, and what is worth a warning about it."""
    sform, qform, warnings = _forms(file, header)
    affine = qform if sform is None else sform
    if affine is None:
        raise ImageError(
            "no orientation (sform and qform codes are both 0)",
            file=file,
            expected="an sform or a qform, without which left and right are unknown",
            remedy=REEXPORT,
        )
    warnings += _check_shear(file, affine)
    if sform is not None and qform is not None:
        warnings += _compare_forms(file, sform, qform, shape)
    return affine, warnings


def _forms(file: Path, header: Any) -> tuple[Affine | None, Affine | None, list[str]]:
    """(sform, qform, warnings), a form being None where its code is 0.

    Beside a usable sform, which is what counts, an unusable qform is a warning; else it is refused. An
    unusable sform always is, because other programs would take it.
    """
    sform = qform = None
    if int(header["sform_code"]) > 0:
        sform = _usable(file, "sform", header.get_sform())
    if int(header["qform_code"]) > 0:
        if float(header["pixdim"][0]) == 0:  # which side the third axis points to: 0 counts as 1 (NIfTI-1)
            header["pixdim"][0] = 1
        try:
            qform = _usable(file, "qform", _qform(file, header))
        except ImageError as error:
            if sform is None:
                raise
            return sform, None, [f"{error.found}; the sform is used"]
    return sform, qform, []


def _qform(file: Path, header: Any) -> Affine:
    try:
        return np.asarray(header.get_qform())
    except (nib.spatialimages.HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise ImageError(
            f"unusable orientation by the qform ({error})", file=file, remedy=REEXPORT
        ) from error


def _usable(file: Path, name: str, form: Affine) -> Affine:
    """A form that gives voxel sizes; others are refused."""
    sizes = np.linalg.norm(form[:3, :3], axis=0)
    if not np.isfinite(form).all() or (sizes < MIN_SPACING_MM).any() or (sizes > MAX_SPACING_MM).any():
        raise ImageError(
            f"{name} gives voxel sizes {' x '.join(f'{size:g}' for size in sizes)} mm",
            file=file,
            expected=f"{MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm",
            remedy=REEXPORT,
        )
    return form


def _check_shear(file: Path, affine: Affine) -> list[str]:
    """Angle by which the index axes miss being perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    shear = math.degrees(math.asin(min(1.0, float(cosines))))
    if shear > MAX_SHEAR_DEG:
        raise ImageError(
            f"axes are {shear:.1f} degrees from perpendicular",
            file=file,
            expected="a lattice without shear",
            remedy="resample it onto perpendicular axes",
        )
    return [f"axes are {shear:.1f} degrees from perpendicular"] if shear > WARN_SHEAR_DEG else []


def _compare_forms(file: Path, sform: Affine, qform: Affine, shape: Shape) -> list[str]:
    """Largest distance and angle between what sform and qform say, over the volume."""
    grid = Grid(shape=shape, affine=sform)
    other = Grid(shape=shape, affine=qform)
    shift = float(np.linalg.norm(grid.corners() - other.corners(), axis=1).max())
    cosines = np.clip((grid.axes * other.axes).sum(axis=0), -1.0, 1.0)
    angle = math.degrees(float(np.arccos(cosines.min())))
    text = f"sform and qform differ by up to {shift:.1f} mm and {angle:.1f} degrees"
    if shift > MAX_SHIFT_MM or angle > MAX_ANGLE_DEG:
        raise ImageError(
            text,
            file=file,
            expected=f"less than {MAX_SHIFT_MM:g} mm and {MAX_ANGLE_DEG:g} degrees",
            remedy="find out which is right and set both to it",
        )
    if shift > WARN_SHIFT_MM or angle > WARN_ANGLE_DEG:
        return [f"{text}; the sform is used"]
    return []


def _finite(file: Path, data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Replace few voxels that are not finite; refuse many."""
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if count == 0:
        return data
    if count > MAX_BAD_FRACTION * data.size:
        raise ImageError(
            f"{count} of {data.size} voxels are NaN or infinite",
            file=file,
            expected=f"at most {MAX_BAD_FRACTION:.0%}",
            remedy="check the conversion, or exclude the file",
        )
    LOG.warning("%s: %d voxels are NaN or infinite; replaced by the lowest intensity", file, count)
    return np.where(bad, data[~bad].min(), data)
