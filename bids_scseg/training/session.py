"""One session and its lesion maps to one prepared case, by the fit and apply of the pipeline."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg import __version__
from bids_scseg.bids.corrections import read_cord
from bids_scseg.bids.filters import Filters
from bids_scseg.bids.masks import is_correction, same_lattice
from bids_scseg.bids.references import LesionMap, find_lesion_maps
from bids_scseg.errors import CordNotFoundError, DataError, ImageError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.inference.facts import join_origins
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.preprocess.cordmask import found_cord, near
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.recipe.load import recipe_to_json
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, Study
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import READ_ERRORS, read_image
from bids_scseg.training.cases import LESIONS_FILE, rules_of
from bids_scseg.training.files import digest
from bids_scseg.training.reference import place_maps
from bids_scseg.training.sample import IGNORE

Rng = np.random.Generator
Floats = npt.NDArray[np.float32]
CordFinder = Callable[[npt.NDArray[np.generic], Grid], npt.NDArray[np.generic]]

JITTER_MM = 0.4  # standard deviation of a finder's centerline errors that training imitates, ours
JITTER_PERIOD_MM = 30.0  # along the cord, over which they vary, ours


@dataclass(frozen=True, slots=True, kw_only=True)
class CordTool:
    """Another program that finds cords; travels to worker processes.

    Attributes
    ----------
    origin
        Its name among the origins that a bundle records.
    sha256
        Checksum of all that decides its output.
    segment
        Image's file and a folder to work in → the mask's file, on the image's lattice.
    """

    origin: str
    sha256: str
    segment: Callable[[Path, Path], Path]


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
    tool
        Another program in the finder's place.
    use_masks
        Whether cord masks are taken where there are any; else finder or tool serve all images.
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
    tool: CordTool | None = None
    use_masks: bool = True
    desc: str | None = None
    jitter_mm: float = 0.0
    register: bool = True
    seed: int = 0
    threads: int = 0


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
    """Prepare one planned session and its lesion map.

    ``cord`` replaces the plan's cord masks: native image (i, j, k) and its grid to cord probability.
    """
    files = tuple(file for sequence in plan.sequences for file in sequence.files)
    study = Study(subject=plan.subject, session=plan.session, dataset=plan.dataset, images=files)
    maps, _ = find_lesion_maps(study, (labels,))
    read = read_session(plan, cord, use_masks=cord is None)
    setting = Preparation(
        out=out.parent, labels=(labels,), recipe=recipe, jitter_mm=jitter_mm, register=register
    )
    write_case(plan, maps, read, setting=setting, folder=out, rng=rng, record={})
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionImages:
    """Images and cords of a session, by sequence, whose cords they are, and what was wrong with files."""

    images: dict[str, list[tuple[Floats, Grid, str]]]
    cords: dict[str, list[npt.NDArray[np.generic] | None]]
    sources: dict[str, str]
    origins: set[str]
    problems: list[str]


def read_session(plan: Plan, finder: CordFinder | CordTool | None, *, use_masks: bool) -> SessionImages:
    """Read all images of a plan, and a cord for each; an image that cannot be read is left out."""
    masks = dict(plan.cord_masks) if use_masks else {}
    out = SessionImages(images={}, cords={}, sources={}, origins=set(), problems=[])
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
            if cord is not None:
                given = "sct" if file.relative in plan.sct_masks else "masks"
                out.origins.add(given if file.relative in masks else source)
    if not out.images:
        raise ImageError(
            f"no image can be read ({'; '.join(out.problems)})", remedy="convert the images again"
        )
    return out


def _cord(
    file: ImageFile, data: Floats, grid: Grid, *, mask: str | None, finder: CordFinder | CordTool | None
) -> tuple[npt.NDArray[np.generic] | None, str]:
    """Cord probability of an image, or None, and where it came from."""
    if mask is not None and is_correction(Path(mask).name):
        return read_cord(mask, grid), Path(mask).name
    if mask is not None:
        return np.clip(_read_mask(Path(mask), grid), 0, 1), Path(mask).name
    if finder is None:
        return None, "none"
    try:
        if isinstance(finder, CordTool):
            return _by_tool(Path(file.path), grid, finder), finder.origin
        return np.clip(finder(data, grid), 0, 1), "cord-finder"
    except ImageError as error:
        return None, f"none ({error.found}: {file.name})"


def _by_tool(image: Path, grid: Grid, tool: CordTool) -> Floats:
    with TemporaryDirectory(prefix="scseg-cord-") as folder:
        found = _read_mask(tool.segment(image, Path(folder)), grid)
    return what_is_cord(np.clip(found, 0, 1), grid)


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
def load_finder(bundle: str, threads: int) -> CordFinder:
    """The built-in cord finder, loaded once per process."""
    import torch

    from bids_scseg.inference.predict import find_cord, load_network

    if threads:
        torch.set_num_threads(threads)
    loaded = load_bundle(bundle)
    network = load_network(loaded)
    return lambda data, grid: what_is_cord(find_cord(network, loaded, image=data, affine=grid.affine), grid)


def what_is_cord(probability: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """Of what a finder found (i, j, k) what can be a cord, as the app takes it; zeros where nothing can."""
    try:
        return near(probability, found_cord(probability, grid))
    except CordNotFoundError:
        return np.zeros_like(probability)


def write_case(
    plan: Plan,
    maps: Sequence[LesionMap],
    read: SessionImages,
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
    _seal(folder, json.dumps(facts).encode())


def publish_case(partial: Path, folder: Path) -> None:
    """Put a finished folder in the place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    record = partial / "case.json"
    content = record.read_bytes()
    record.unlink()
    partial.replace(folder)
    _seal(folder, content)


def _seal(folder: Path, content: bytes) -> None:
    """Give a folder the record that makes it a case, at once."""
    (folder / "case.part").write_bytes(content)
    (folder / "case.part").replace(folder / "case.json")


def _facts(
    read: SessionImages,
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
        "cord_method": _cord_method(read.origins, setting.jitter_mm),
        "rules": rules_of(setting.recipe),
        "cords": read.sources,
        "lesion_maps": [found.name for found in maps],
        "jitter_mm": setting.jitter_mm,
        "registered": setting.register,
        "recipe_sha256": digest(recipe_to_json(setting.recipe)),
        "version": __version__,
        "lesions": int(np.unique(label[lesion]).size),
        "volume_mm3": round(float(lesion.sum()) * geometry.grid.voxel_volume, 1),
    }


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _cord_method(origins: Iterable[str], jitter_mm: float) -> str | None:
    """Where a case's cords came from, as a bundle records it; None where no image has one."""
    masks = "jittered-masks" if jitter_mm > 0 else "masks"
    return join_origins(masks if origin == "masks" else origin for origin in origins)


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
