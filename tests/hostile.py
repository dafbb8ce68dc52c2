"""Files that nobody should trust: one maker for each way in which an input can be wrong.

A maker gets the path of a sound image, ``sub-<name>/anat/sub-<name>_acq-ax_T2starw.nii.gz``, and spoils it or
what lies beside it. `words` is what the user is told; no words: it is handled, and the session goes on.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

Maker = Callable[[Path], None]

DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, INTER = 40, 70, 76, 108, 112, 116  # NIfTI-1, bytes
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344
STATED_LENGTH = -4  # of a gzip file


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """How an input is spoilt, and what is said about it.

    `late` if only its voxels tell; `kept` if a warning tells and the image serves.
    """

    make: Maker
    words: str = ""
    late: bool = False
    kept: bool = False


def patch(offset: int, kind: str, *values: float) -> Maker:
    """Overwrite header fields as they stand, without repairs."""

    def change(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        block = struct.pack(f"<{len(values)}{kind}", *values)
        content[offset : offset + len(block)] = block
        path.write_bytes(gzip.compress(bytes(content), 1))

    return change


def both(*makers: Maker) -> Maker:
    def change(path: Path) -> None:
        for make in makers:
            make(path)

    return change


def content(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data) and None


def instead(make: Callable[[Path], object]) -> Maker:
    """Something else in the place of the image."""

    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def beside(data: str | bytes | Callable[[Path], object]) -> Maker:
    """A sidecar."""

    def change(path: Path) -> None:
        file = path.with_name(path.name.replace(".nii.gz", ".json"))
        if callable(data):
            data(file)
        else:
            file.write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def renamed(name: str | bytes) -> Maker:
    """Another name in the same folder; ``{}`` stands for subject. Names may be bytes that are no text."""

    def change(path: Path) -> None:
        subject = path.name.split("_")[0]
        text = os.fsdecode(name) if isinstance(name, bytes) else name
        path.rename(path.with_name(text.replace("{}", subject)))

    return change


def unpacked(path: Path) -> None:
    """A plain file under a gzip name."""
    path.write_bytes(gzip.decompress(path.read_bytes()))


def packed_as_plain(path: Path) -> None:
    path.rename(path.with_name(path.name.removesuffix(".gz")))


def nifti2_of_terabytes(path: Path) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((10, 10, 10))
    block = bytearray(header.binaryblock)
    block[16 : 16 + 8 * 4] = struct.pack("<4q", 3, 1 << 40, 1 << 40, 1 << 40)
    path.write_bytes(gzip.compress(bytes(block) + bytes(1000)))


def stated_length(value: int) -> Maker:
    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:STATED_LENGTH] + struct.pack("<I", value))

    return change


def bomb(path: Path) -> None:
    """A few kB that unpack to 200 MB behind the voxels."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(200_000_000), 9))


def flipped(path: Path) -> None:
    """One bit in the middle of the compressed voxels."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


def floats(value: float) -> Maker:
    def change(path: Path) -> None:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.full(image.shape, value, np.float32), image.affine), path)

    return change


def four_dimensional(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 3, axis=-1), image.affine), path)


def annexed(path: Path) -> None:
    """As git-annex keeps it: the content inside the dataset's own store."""
    store = path.parents[2] / ".git" / "annex" / "objects" / path.name
    store.parent.mkdir(parents=True, exist_ok=True)
    path.rename(store)
    path.symlink_to(os.path.relpath(store, path.parent))


def scans(data: bytes) -> Maker:
    def change(path: Path) -> None:
        path.parents[1].joinpath(f"{path.parents[1].name}_scans.tsv").write_bytes(data)

    return change


def folder_in_circles(path: Path) -> None:
    (path.parent / "again").symlink_to("..")


UNUSABLE = "unusable orientation"
INPUTS: dict[str, Hostile] = {
    # sizes
    "hugedims": Hostile(make=patch(DIM + 2, "h", 30000, 30000, 30000), words="GB in memory"),
    "flatdims": Hostile(make=patch(DIM + 2, "h", 32767, 32767, 2), words="GB in memory"),
    "nifti2": Hostile(make=nifti2_of_terabytes, words="GB in memory"),
    "zerodim": Hostile(make=patch(DIM + 2, "h", 0), words="make no sense"),
    "negativedim": Hostile(make=patch(DIM + 2, "h", -5), words="make no sense"),
    "nodims": Hostile(make=patch(DIM, "h", 0), words="make no sense"),
    "ninedims": Hostile(make=patch(DIM, "h", 9), words="make no sense"),
    "swapped": Hostile(make=patch(DIM, "h", 768), words="GB in memory"),
    "twodims": Hostile(make=patch(DIM, "h", 2), words="a single slice"),
    "fourdims": Hostile(make=four_dimensional, words="4 dimensions"),
    "longer": Hostile(make=patch(DIM + 6, "h", 13), words="truncated"),
    # voxels
    "notype": Hostile(make=patch(DATATYPE, "h", 0), words="data type"),
    "complex": Hostile(make=patch(DATATYPE, "h", 32), words="data type"),
    "colours": Hostile(make=patch(DATATYPE, "h", 128), words="data type"),
    "unknowntype": Hostile(make=patch(DATATYPE, "h", 9999), words="data type"),
    "quadruple": Hostile(make=patch(DATATYPE, "h", 1536), words="data type"),
    "wider": Hostile(make=patch(DATATYPE, "h", 64), words="truncated"),
    "allnan": Hostile(make=floats(np.nan), words="NaN or infinite", late=True),
    "allinf": Hostile(make=floats(np.inf), words="NaN or infinite", late=True),
    "constant": Hostile(make=floats(3.0), words="every voxel has the value 3", late=True),
    "hugescale": Hostile(make=patch(SLOPE, "f", 3e38), words="NaN or infinite", late=True),
    "infscale": Hostile(make=patch(SLOPE, "f", np.inf)),  # NIfTI: a scale that is no number is none
    "nanshift": Hostile(make=patch(SLOPE, "f", 1.0, np.nan), words="cannot be read", late=True),
    "nooffset": Hostile(make=patch(OFFSET, "f", 0.0), words="voxels start at byte 0, within the header"),
    "earlyoffset": Hostile(
        make=patch(OFFSET, "f", 348.0), words="voxels start at byte 348, within the header"
    ),
    "faroffset": Hostile(make=patch(OFFSET, "f", 1e30), words="voxels start at byte 1e+30"),
    "nanoffset": Hostile(make=patch(OFFSET, "f", np.nan), words="voxels start at byte nan"),
    "negativeoffset": Hostile(make=patch(OFFSET, "f", -400.0), words="voxels start at byte -400"),
    # space
    "zerospacing": Hostile(make=patch(PIXDIM + 4, "f", 0.0), words="voxel sizes"),
    "negativespacing": Hostile(make=patch(PIXDIM + 4, "f", -1.0), words="voxel sizes"),
    "nanspacing": Hostile(make=patch(PIXDIM + 8, "f", np.nan), words="voxel sizes"),
    "infspacing": Hostile(make=patch(PIXDIM + 12, "f", np.inf), words="voxel sizes"),
    "kilometres": Hostile(make=patch(PIXDIM + 4, "f", 1e6), words="voxel sizes"),
    "nanaffine": Hostile(make=patch(SROW_X, "f", np.nan), words="sform gives"),
    "infaffine": Hostile(make=patch(SROW_X + 12, "f", np.inf), words="sform gives"),
    "singular": Hostile(make=patch(SROW_X, "f", *[0.0] * 12), words="sform gives"),
    "sheared": Hostile(make=patch(SROW_X, "f", 1.0, 0.9, 0.9), words="from perpendicular"),
    "noforms": Hostile(make=patch(QFORM_CODE, "h", 0, 0), words="no orientation"),
    "nanquatern": Hostile(
        make=both(patch(SFORM_CODE, "h", 0), patch(QUATERN_B, "f", np.nan)), words="qform gives"
    ),
    "hugequatern": Hostile(make=both(patch(SFORM_CODE, "h", 0), patch(QUATERN_B, "f", 5.0)), words=UNUSABLE),
    "contradiction": Hostile(make=patch(SROW_X + 12, "f", 500.0), words="sform and qform differ"),
    # containers
    "magic": Hostile(make=patch(MAGIC, "b", 0, 0, 0, 0), words="not a NIfTI file"),
    "pair": Hostile(make=patch(MAGIC, "b", *b"ni1\x00"), words="half of an .hdr/.img pair"),
    "empty": Hostile(make=content(b""), words="an empty file"),
    "onebyte": Hostile(make=content(b"\x1f"), words="not gzip"),
    "gzipheader": Hostile(make=content(b"\x1f\x8b\x08"), words="cannot be read"),
    "text": Hostile(make=content(gzip.compress(b"hello" * 200)), words="not a NIfTI file"),
    "plain": Hostile(make=unpacked, words="not gzip"),
    "packed": Hostile(make=packed_as_plain, words="gzip-compressed, against"),
    "short": Hostile(make=lambda path: path.write_bytes(path.read_bytes()[:300]) and None, words="truncated"),
    "lyingshort": Hostile(make=stated_length(17), words="cannot be read"),
    "lyinglong": Hostile(make=stated_length(2**32 - 1), words="cannot be read"),
    "bomb": Hostile(make=bomb, words="bytes follow the voxels", late=True),
    "bit": Hostile(make=flipped, words="cannot be read", late=True),
    # what is no file
    "folder": Hostile(make=instead(Path.mkdir), words="no regular file"),
    "pipe": Hostile(make=instead(os.mkfifo), words="no regular file"),
    "nowhere": Hostile(make=instead(lambda p: p.symlink_to("absent")), words="a link whose target is absent"),
    "circle": Hostile(make=instead(lambda p: p.symlink_to(p.name)), words="a link whose target is absent"),
    "password": Hostile(
        make=instead(lambda p: p.symlink_to("/etc/passwd")), words="leads out of the dataset"
    ),
    "device": Hostile(make=instead(lambda p: p.symlink_to("/dev/zero")), words="leads out of the dataset"),
    "annex": Hostile(make=annexed),
    "loop": Hostile(make=folder_in_circles),
    # sidecars
    "notjson": Hostile(make=beside("{"), words="as JSON", kept=True),
    "list": Hostile(make=beside("[1, 2]"), words="is not a JSON object", kept=True),
    "deep": Hostile(make=beside("[" * 100_000), words="as JSON", kept=True),
    "nested": Hostile(make=beside('{"a":' * 500 + "1" + "}" * 500), words="nests deeper", kept=True),
    "digits": Hostile(make=beside('{"EchoTime": ' + "9" * 5000 + "}"), words="as JSON", kept=True),
    "large": Hostile(make=beside('{"a": "' + "x" * 17_000_000 + '"}'), words="is larger than", kept=True),
    "latin": Hostile(make=beside(b'{"a": "\xe9"}'), words="cannot be read", kept=True),
    "jsonpipe": Hostile(make=beside(os.mkfifo), words="is no regular file", kept=True),
    "jsonlink": Hostile(
        make=beside(lambda p: p.symlink_to("/etc/passwd")), words="leads out of the dataset", kept=True
    ),
    "jsonfolder": Hostile(make=beside(Path.mkdir), words="json", kept=True),
    "numbers": Hostile(
        make=beside('{"EchoTime": 1e999, "FlipAngle": -1e999, "a": NaN, "b": 1' + "0" * 400 + "}")
    ),
    "types": Hostile(make=beside('{"InversionTime": {"a": []}, "SequenceName": [], "ProtocolName": [null]}')),
    "quality": Hostile(make=beside('{"quality": [[["bad"]]], "exclude": {}}')),
    "scansbytes": Hostile(make=scans(b"filename\tquality\n\xff\xfe\x00\n")),
    "scansfield": Hostile(make=scans(b"filename\tquality\n" + b"x" * 200_000 + b"\tbad\n")),
    # names
    "newline": Hostile(make=renamed("{}_acq-ax\nx_T2starw.nii.gz"), words="not a BIDS name"),
    "shell": Hostile(make=renamed("{}_acq-$(touch pwned);`id`|x_T2starw.nii.gz"), words="not a BIDS name"),
    "markup": Hostile(make=renamed("{}_<script>alert(1)<_T2starw.nii.gz"), words="not a BIDS name"),
    "backslash": Hostile(make=renamed("{}_acq-..\\..\\x_T2starw.nii.gz"), words="not a BIDS name"),
    "dots": Hostile(make=renamed("{}_acq-.._T2starw.nii.gz"), words="not a BIDS name"),
    "bytes": Hostile(make=renamed(b"{}_acq-\xff\xfe_T2starw.nii.gz"), words="not a BIDS name"),
    "twice": Hostile(make=renamed("{}_acq-ax_acq-b_T2starw.nii.gz"), words="not a BIDS name"),
    "other": Hostile(make=renamed("sub-someone_acq-ax_T2starw.nii.gz"), words="belongs to another subject"),
    "long": Hostile(make=renamed("{}_acq-" + "x" * 200 + "_T2starw.nii.gz")),
}
