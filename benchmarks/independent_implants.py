"""Test lesions in real cords, drawn by other code than the lesions that training sees.

Usage:
    python benchmarks/independent_implants.py REAL OUT [--config configs/independent-implants.json]
        [--exclude-participant-label LABEL …]

For every image of REAL with a drawn cord mask (``derivatives/labels``) and a sequence named in the
configuration, ``draws`` copies with lesions, each as a session of its own with that one image, plus the
untouched image as a session without lesions. Nothing of ``bids_scseg`` is imported: lesions are
superellipsoids in millimetres around the slices' centres of mass, averaged over sub-voxels, whose
brightness is a multiple of the standard deviation of the lesion-free cord within 10 mm. The configuration
is frozen: a target is never reached by editing it. Draws depend on an image's name, so leaving people out
changes no other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.special import expit

CONFIG = Path(__file__).parent.parent / "configs" / "independent-implants.json"
EDGE = 0.12  # softness of the edge, as a share of the lesion's half width
STEP_MM = 0.5  # largest sub-voxel
MARGIN = 6  # voxels


def centre_line(cord, affine):
    """World position of the cord's centre of mass in each of its slices, by rising height: (n, 3)."""
    axis = int(np.argmax(np.abs(affine[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0)))
    points = []
    for index in np.flatnonzero(cord.any(axis=tuple(a for a in range(3) if a != axis))):
        inside = np.argwhere(np.take(cord, [index], axis=axis))
        inside[:, axis] = index
        points.append(affine[:3, :3] @ inside.mean(axis=0) + affine[:3, 3])
    line = np.array(sorted(points, key=lambda point: point[2]))
    return ndimage.gaussian_filter1d(line, 1.5, axis=0, mode="nearest") if len(line) > 4 else line


def draw(rng, line, radius, config):
    """One lesion: centre height, its angle and offset in the section, half axes, exponent, contrast."""
    column = rng.choice(3, p=config["columns"])  # lateral, posterior, anterior
    angle = (rng.choice([0.0, np.pi]), -np.pi / 2, np.pi / 2)[column] + rng.normal(0, 0.35)
    area = np.clip(rng.lognormal(np.log(config["area_mm2"]), 0.45), 3, 22)
    length = np.clip(rng.lognormal(np.log(config["length_mm"]), 0.45), 6, 45)
    ratio = rng.uniform(0.6, 1.6)
    margin = 3.0
    return {
        "z": rng.uniform(line[0, 2] + margin, line[-1, 2] - margin),
        "angle": angle,
        "offset": rng.uniform(*config["offset"]) * radius,
        "half": [np.sqrt(area / np.pi * ratio), np.sqrt(area / np.pi / ratio), length / 2],
        "exponent": rng.uniform(1.7, 3.0),
        "contrast": rng.uniform(*config["contrast"]),
    }


def weight(lesion, line, shape, affine):
    """Share of the lesion in each voxel, 0-1."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    parts = [max(1, int(np.ceil(z / STEP_MM))) for z in zooms]
    low, high = _box(lesion, line, shape, affine)
    grid = np.stack(
        np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1
    ).astype(float)
    total = np.zeros(grid.shape[:3])
    for step in product(*[(np.arange(n) + 0.5) / n - 0.5 for n in parts]):
        world = (grid + step) @ affine[:3, :3].T + affine[:3, 3]
        x, y = (world[..., a] - np.interp(world[..., 2], line[:, 2], line[:, a]) for a in (0, 1))
        x, y = x - lesion["offset"] * np.cos(lesion["angle"]), y - lesion["offset"] * np.sin(lesion["angle"])
        u = x * np.cos(lesion["angle"]) + y * np.sin(lesion["angle"])
        v = -x * np.sin(lesion["angle"]) + y * np.cos(lesion["angle"])
        near = sum(
            np.abs(d / h) ** lesion["exponent"]
            for d, h in zip((u, v, world[..., 2] - lesion["z"]), lesion["half"], strict=True)
        )
        total += expit((1 - near ** (1 / lesion["exponent"])) / (EDGE / 2))
    out = np.zeros(shape)
    out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = total / np.prod(parts)
    return out


def _box(lesion, line, shape, affine):
    """Voxel box that holds a lesion."""
    reach = np.array([lesion["offset"] + max(lesion["half"][:2]) + 3] * 2 + [lesion["half"][2] + 2])
    near = np.abs(line[:, 2] - lesion["z"]) <= reach[2] + 10
    points = line[near] if near.any() else line
    corners = np.array([p + reach * s for p in points for s in product((-1, 1), repeat=3)])
    corners = corners[np.abs(corners[:, 2] - lesion["z"]) <= reach[2] + 20]
    voxel = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    low = np.clip(np.floor(voxel.min(0)).astype(int) - 1, 0, shape)
    return low, np.clip(np.ceil(voxel.max(0)).astype(int) + 2, 0, shape)


def implant(image, cord, affine, config, sign, rng):
    """The image with lesions, their numbered mask and their records."""
    box, affine = _around(cord, affine)
    whole, marks = image.astype(np.float64), np.zeros(image.shape, np.uint8)
    image, cord = whole[box], cord[box]
    line = centre_line(cord, affine)
    length = line[-1, 2] - line[0, 2]
    voxel = abs(np.linalg.det(affine[:3, :3]))
    radius = np.sqrt(cord.sum() * voxel / max(length, 1.0) / np.pi)
    out, labels, records = image.astype(np.float64), np.zeros(image.shape, np.uint8), []
    smooth = ndimage.gaussian_filter(rng.normal(size=image.shape), 1.0)
    smooth /= smooth.std()
    heights = _heights(image.shape, affine)
    for number in range(1, 1 + max(1, int(rng.poisson(length * config["per_mm"])))):
        lesion = draw(rng, line, radius, config)
        share = weight(lesion, line, image.shape, affine) * cord
        mask = (share >= 0.5) & (labels == 0)
        free = cord & (labels == 0) & (share < 0.05) & (np.abs(heights - lesion["z"]) <= 10)
        touching = ndimage.binary_dilation(mask, iterations=2) & (labels > 0)
        if mask.sum() * voxel < config["smallest_mm3"] or free.sum() < 20 or touching.any():
            continue
        spread = float(image[free].std())
        out += sign * lesion["contrast"] * spread * share * (1 + 0.15 * smooth)
        labels[mask] = number
        got = sign * (out[mask].mean() - image[free].mean()) / spread
        records.append({"lesion": number, "volume_mm3": round(float(mask.sum() * voxel), 1),
                        "contrast": round(float(got), 2)})  # fmt: skip
    whole[box], marks[box] = out, labels
    return whole, marks, records


def _around(cord, affine):
    """The box around the cord, and its affine."""
    box = tuple(slice(max(int(c.min()) - MARGIN, 0), int(c.max()) + MARGIN + 1) for c in np.nonzero(cord))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return box, moved


def _heights(shape, affine):
    index = np.indices(shape)
    return sum(affine[2, a] * index[a] for a in range(3)) + affine[2, 3]


def images(real, exclude=()):
    """Image, cord mask and suffix of every image with a drawn cord mask, but for some people's."""
    for mask in sorted((real / "derivatives" / "labels").rglob("*_label-SC_seg.nii.gz")):
        name = mask.name.replace("_label-SC_seg", "")
        image = real / mask.parent.relative_to(real / "derivatives" / "labels") / name
        if image.exists() and name.split("_")[0].removeprefix("sub-") not in exclude:
            yield image, mask, name.split("_")[-1].split(".")[0]


def write(out, image, values, cord, labels, session):
    """One session: image, sidecar, cord mask and lesion mask."""
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    old = Path(image.get_filename()).name
    subject = old.split("_")[0]
    tail = [part for part in old.split("_")[1:] if not part.startswith(("ses-", "run-"))]
    name = "_".join([subject, session, *tail])
    stem = name.removesuffix(".nii.gz").rsplit("_", 1)[0]
    raw = out / subject / session / "anat"
    truth = out / "derivatives" / "labels" / subject / session / "anat"
    for folder in (raw, truth):
        folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine, header), raw / name)
    (raw / name.replace(".nii.gz", ".json")).write_text("{}\n")
    header.set_data_dtype(np.uint8)
    source = f"bids:raw:{(raw / name).relative_to(out)}"
    for kind, mask in (("SC", cord), ("lesion", labels > 0)):
        nib.save(
            nib.Nifti1Image(mask.astype(np.uint8), image.affine, header),
            truth / f"{stem}_label-{kind}_mask.nii.gz",
        )
        (truth / f"{stem}_label-{kind}_mask.json").write_text(json.dumps({"Sources": [source]}) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("real", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--exclude-participant-label", nargs="+", default=[], metavar="LABEL")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    exclude = [label.removeprefix("sub-") for label in args.exclude_participant_label]
    records = []
    for file, mask, suffix in images(args.real, exclude):
        if suffix not in config["signs"]:
            continue
        image = nib.load(file)
        data, cord = np.asarray(image.dataobj, np.float64), np.asarray(nib.load(mask).dataobj) > 0.5
        if data.shape != cord.shape:
            continue
        key = "".join(c for c in file.name.split(".")[0].split("_", 1)[1] if c.isalnum())
        for number in range(config["draws"] + 1):
            session = f"ses-{key}{number:02d}"
            seed = hashlib.sha256(f"{config['seed']}:{file.name}:{number}".encode()).digest()
            rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
            values, labels, rows = (
                implant(data, cord, image.affine, config, config["signs"][suffix], rng)
                if number
                else (data, np.zeros(data.shape, np.uint8), [])
            )
            write(args.out, image, values, cord, labels, session)
            records += [
                {"subject": file.name.split("_")[0], "session": session, "suffix": suffix, **row}
                for row in rows
            ]
        print(file.name, sum(row["session"].startswith(f"ses-{key}") for row in records), flush=True)
    for folder, kind in ((args.out, "raw"), (args.out / "derivatives" / "labels", "derivative")):
        description = {"Name": "Test lesions in real cords", "BIDSVersion": "1.10.0", "DatasetType": kind}
        if kind == "derivative":
            description |= {
                "GeneratedBy": [{"Name": "independent_implants"}],
                "DatasetLinks": {"raw": "../.."},
            }
        (folder / "dataset_description.json").write_text(json.dumps(description) + "\n")
    (args.out / "implants.json").write_text(json.dumps(records, indent=0) + "\n")


if __name__ == "__main__":
    main()
