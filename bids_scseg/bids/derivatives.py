"""A session's results as BIDS derivatives, on the lattices of its own images."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.checksums import forget
from bids_scseg.bids.dataset import image_metadata, mask_metadata, own_uri, raw_uri
from bids_scseg.bids.masks import is_correction
from bids_scseg.bids.names import (
    OutputSpaces,
    SegmentationNames,
    SessionNames,
    all_names,
    cord_mask_name,
    image_names,
    session_names,
    sidecar,
    slab_names,
)
from bids_scseg.bids.verify import dataset_links, file_uri
from bids_scseg.bids.write import APP_NAME, TableValue, safe_join, write_image, write_json, write_tsv
from bids_scseg.errors import OutputError
from bids_scseg.measure.instances import restore_labels, restore_labels_onto
from bids_scseg.measure.lesions import lesion_columns
from bids_scseg.measure.schema import data_dictionary
from bids_scseg.recipe.study import ImageFile, Plan
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

CORRECTION_KEY = "ManualCorrection"  # in sidecars of lesion masks that a reader corrected
BY_HAND = "Manual"  # BIDS' name in GeneratedBy for what people made
PROBABILITY = "Lesion probability: mean of the prepared-space map over each voxel"
MASK = "Lesions; the union of the numbered instances"
INSTANCES = (
    "Numbered lesions. Each keeps its volume: of the voxels it touches, those that it fills most are chosen"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionResults:
    """What a session came to, in prepared space and on its native lattices.

    Attributes
    ----------
    plan
        The session.
    geometry
        Map between prepared space and native images.
    labels : (i, j, k) int32
        Lesion numbers.
    probability : (i, j, k) float32
        Lesion probability.
    lesions
        Rows of the lesion table.
    summary
        Session row and quality, as plain data.
    cords
        Image (relative path) → cord mask on its lattice and who made it; images without a cord are absent.
    anchor_images
        Native volumes of the anchor's slabs, uppermost first.
    sequences
        All sequences of the recipe.
    engine
        Whose network found the lesions and what its values mean; empty for this program's own.
    """

    plan: Plan
    geometry: Geometry
    labels: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float32]
    lesions: Sequence[Mapping[str, TableValue]]
    summary: Mapping[str, object]
    cords: Mapping[str, tuple[npt.NDArray[np.bool_], Grid, str]]
    anchor_images: Sequence[npt.NDArray[np.float32]]
    sequences: tuple[str, ...]
    engine: Mapping[str, object] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, object]:
        """Who made the lesion images, for their sidecars."""
        model, version = self.summary.get("model"), self.summary.get("version")
        words = f"lesion model {model}, SHA-256 {self.summary.get('model_sha256')}"
        made: list[dict[str, object]] = [{"Name": APP_NAME, "Version": version, "Description": words}]
        if self.engine:
            made.append(
                {
                    "Name": self.engine.get("program"),
                    "Version": self.engine.get("release"),
                    "Description": f"{self.engine.get('command')}, each source image by itself",
                    "ModelURL": self.engine.get("model_urls"),
                }
            )
        return {"GeneratedBy": made, **self.given_geometry}

    @property
    def correction(self) -> Mapping[str, object]:
        """What a reader corrected of the lesions; empty where nobody did."""
        found = self.summary.get("correction")
        return found if isinstance(found, Mapping) else {}

    @property
    def corrected_files(self) -> str:
        """Names of the reader's lesion masks, for people; empty where nobody corrected them."""
        return ", ".join(Path(path).name for _, path in self.plan.corrections) if self.correction else ""

    @property
    def made_by_hand(self) -> dict[str, object]:
        """Who made the lesion masks, for their sidecars: beside the model, the reader who corrected it."""
        made = self.provenance
        if not self.correction:
            return made
        words = f"correction of the model's lesions: {self.corrected_files}"
        hand = {"Name": BY_HAND, "Description": words}
        found = {key: value for key, value in self.correction.items() if key != "notes"}
        listed = made["GeneratedBy"]
        before = listed if isinstance(listed, list) else []
        return {**made, "GeneratedBy": [*before, hand], CORRECTION_KEY: found}

    def words(self, text: str) -> str:
        """Description of a lesion mask, which says so where a reader corrected it."""
        return f"{text}. Corrected by a reader: {self.corrected_files}" if self.correction else text

    @property
    def given_geometry(self) -> dict[str, object]:
        """Which geometry was applied instead of a fit, for sidecars; nothing where it was fitted."""
        fit = self.summary.get("fit")
        given = fit.get("geometry") if isinstance(fit, Mapping) else None
        return {"GeometryGiven": given} if given else {}

    @property
    def rules(self) -> dict[str, object]:
        """From probability to mask, for its sidecar."""
        run = self.summary.get("run")
        run = run if isinstance(run, Mapping) else {}
        names = {"SeedThreshold": "seed_threshold", "SeedThresholdAlone": "seed_threshold_alone"}
        seed = {key: run[name] for key, name in names.items() if run.get(name)}
        return {
            "Threshold": self.summary.get("threshold"), **seed, "MinimumVolume": run.get("min_volume_mm3")
        }  # fmt: skip

    @property
    def files(self) -> dict[str, ImageFile]:
        """Images of the plan by relative path."""
        return {file.relative: file for sequence in self.plan.sequences for file in sequence.files}

    @property
    def anchor_files(self) -> tuple[ImageFile, ...]:
        """The anchor's images, uppermost first as in the geometry."""
        return tuple(self.files[slab.file] for slab in self.geometry.slabs_of(self.geometry.anchor))


def write_results(
    out: str | Path, results: SessionResults, *, output_spaces: OutputSpaces
) -> tuple[str, ...]:
    """Write all derivatives of a session, each atomically; those of an earlier run that are no more go.

    Parameters
    ----------
    out
        Root of the output dataset.
    results
        What to write.
    output_spaces
        ``anchor``: on the anchor's lattices; ``all``: on those of every image used.

    Returns
    -------
    Paths relative to `out`, sidecars included, the summary last: it lists the others, so a session whose
    summary is there is complete.

    Raises
    ------
    OutputError
        If a file cannot be written or two would bear the same name. Then no file of the session is left:
        some of them would be of this run and others of an earlier one.
    """
    plan, anchor = results.plan, results.anchor_files
    others = [file for name, file in results.files.items() if file not in anchor]
    planned = all_names(
        anchor, others, subject=plan.subject, session=plan.session, output_spaces=output_spaces
    )
    names = session_names(anchor, subject=plan.subject, session=plan.session)
    journal = f"logs/.{plan.label}.outputs.json"
    previous = _listed(out, names.summary) | _listed(out, journal)
    mine = {path for path in planned if path.startswith("sub-") and path != names.report}
    mine |= {sidecar(path) for path in mine}
    # Whoever stops this run from here on leaves a session without a summary: unfinished, not a mixture. Who
    # takes it up again learns from the journal which files there may be.
    forget(Path(out), plan.label)
    write_json(out, journal, {"outputs": sorted(previous | mine)})
    _remove(out, [names.summary, *(previous - mine)])
    try:
        written = set(_write_all(out, results, names, output_spaces))
        _remove(out, previous - written)
        write_json(out, names.summary, {**results.summary, "outputs": sorted(written)})
    except BaseException:
        _remove(out, previous | mine)
        raise
    finally:
        _remove(out, [journal])
    return (*sorted(written), names.summary)


def _write_all(
    out: str | Path, results: SessionResults, names: SessionNames, output_spaces: OutputSpaces
) -> Iterator[str]:
    """Write everything but the summary; the paths as they come."""
    geometry, anchor = results.geometry, results.anchor_files
    yield from _write_cords(out, results)
    yield from _write_fused(out, results, names.fused)
    yield from _write_segmentation(out, results, names.result, slab=None)
    for slab, own in zip(geometry.slabs_of(geometry.anchor), slab_names(anchor), strict=False):
        yield from _write_segmentation(out, results, own, slab=slab)
    if output_spaces == "all":
        for slab in (slab for slab in geometry.slabs if slab.key != geometry.anchor):
            yield from _write_segmentation(out, results, image_names(results.files[slab.file]), slab=slab)
    columns = lesion_columns(results.sequences)
    write_tsv(out, names.table, results.lesions, columns=[column.name for column in columns])
    yield names.table
    write_json(out, names.geometry, geometry.to_json())
    yield names.geometry


def _remove(out: str | Path, paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError, OutputError):
            safe_join(out, path).unlink(missing_ok=True)


def written_outputs(out: str | Path, plan: Plan) -> tuple[str, ...]:
    """Derivatives of a finished session as its summary lists them, the summary last; none if unfinished."""
    files = [file for sequence in plan.sequences for file in sequence.files]
    if not files:
        return ()
    summary = session_names(files, subject=plan.subject, session=plan.session).summary
    listed = _listed(out, summary)
    return (*sorted(listed), summary) if listed else ()


def _listed(out: str | Path, record: str) -> set[str]:
    """Outputs of an earlier run of this session, as its summary or journal lists them."""
    try:
        listed = json.loads(safe_join(out, record).read_text(encoding="utf-8"))["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {item for item in listed if isinstance(item, str) and item.startswith("sub-")}


def _uris(out: str | Path, paths: Iterable[str]) -> list[str]:
    """BIDS URIs of corrected masks; those in no dataset that the output folder links to are left out."""
    files = list(paths)
    links = dataset_links(Path(out))[0] if files else {}
    return [uri for uri in (file_uri(path, links) for path in files) if uri is not None]


def _write_cords(out: str | Path, results: SessionResults) -> Iterator[str]:
    corrected = {
        image: path for image, path in results.plan.cord_masks if is_correction(path.rsplit("/", 1)[-1])
    }
    for name, (mask, grid, source) in results.cords.items():
        path = cord_mask_name(results.files[name])
        sources = [raw_uri(name), *_uris(out, [corrected[name]] if name in corrected else [])]
        metadata = mask_metadata(
            sources, kind="ROI", description=f"Spinal cord, by {source}", reference=raw_uri(name)
        )
        yield from _image(out, path, mask, grid, metadata)


def _write_fused(out: str | Path, results: SessionResults, path: str) -> Iterator[str]:
    """The anchor's slabs as one image; nothing for a single one, which is its own."""
    geometry = results.geometry
    slabs = geometry.slabs_of(geometry.anchor)
    if len(slabs) < 2:
        return
    grid = geometry.fused_grid(geometry.anchor)
    image, _ = geometry.sample(results.anchor_images, key=geometry.anchor, grid=grid)
    metadata = image_metadata(
        [raw_uri(slab.file) for slab in slabs],
        description="Slabs of the anchor sequence, aligned and fused with one linear interpolation",
        reference=raw_uri(slabs[0].file),
        more={"SkullStripped": False, **results.given_geometry},
    )
    yield from _image(out, path, image, grid, metadata)


def _write_segmentation(
    out: str | Path, results: SessionResults, names: SegmentationNames, *, slab: Slab | None
) -> Iterator[str]:
    """Probability, mask and instances on a slab's lattice, or on the anchor's fused one (None)."""
    geometry = results.geometry
    slabs = geometry.slabs_of(geometry.anchor)
    if slab is None:
        key, grid = geometry.anchor, geometry.fused_grid(geometry.anchor)
        probability = geometry.restore_onto(results.probability, key=key, grid=grid)
        labels = restore_labels_onto(results.labels, geometry, key=key, grid=grid)
        reference = raw_uri(slabs[0].file)
        if len(slabs) > 1:
            fused = session_names(
                results.anchor_files, subject=results.plan.subject, session=results.plan.session
            ).fused
            reference = own_uri(fused)
    else:
        grid, reference = slab.grid, raw_uri(slab.file)
        probability = geometry.restore(results.probability, slab)
        labels = restore_labels(results.labels, geometry, slab)
    sources = [raw_uri(name) for name in results.files]
    words = f"{results.engine['meaning']}. Mean over each voxel" if results.engine else PROBABILITY
    made, by_hand = results.provenance, results.made_by_hand
    hand = _uris(out, [path for _, path in results.plan.corrections] if results.correction else [])
    yield from _image(
        out, names.probseg, probability, grid,
        image_metadata(sources, description=words, reference=reference, more=made),
    )  # fmt: skip
    mask = mask_metadata(
        [own_uri(names.dseg), *hand], kind="Lesion", description=results.words(MASK), reference=reference
    )
    yield from _image(
        out, names.mask, labels > 0, grid,
        {**mask, **results.rules, **by_hand},
    )  # fmt: skip
    columns = data_dictionary(lesion_columns(results.sequences)) if slab is None else {}
    yield from _image(
        out, names.dseg, labels, grid,
        image_metadata(
            [own_uri(names.probseg), *hand],
            description=results.words(INSTANCES),
            reference=reference,
            more={**columns, **by_hand},
        ),
    )  # fmt: skip


def _image(
    out: str | Path, path: str, data: npt.NDArray[np.generic], grid: Grid, metadata: Mapping[str, object]
) -> Iterator[str]:
    write_image(out, path, data, grid=grid, metadata=metadata)
    yield sidecar(path)
    yield path
