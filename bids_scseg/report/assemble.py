"""From the results of a session to the records that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.plan import not_asked_for
from bids_scseg.bids.table import imputation
from bids_scseg.inference.bundle import ModelBundle, session_mismatch
from bids_scseg.measure.cohort import CORD_SOURCES
from bids_scseg.measure.extent import Beyond, beyond_masks, most_beyond
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.preprocess.reuse import GIVEN
from bids_scseg.recipe.study import Plan
from bids_scseg.report.flags import derive_flags
from bids_scseg.report.methods import CORD_PROGRAMS, MethodsFacts, compose
from bids_scseg.report.records import (
    NOTHING,
    AbsentSequence,
    Flag,
    NativeImage,
    Row,
    SequenceView,
    SessionReport,
)
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid, transform_points

ALREADY_DERIVED = (
    "borrowed from other sequences",
    "may be cut there",
)  # warnings that derive_flags shows better
MISMATCH = "The model was trained on something else"
MISMATCH_REMEDY = "Judge it on cases of your own first, or use a model that was trained as this run works."


class NativeCord(NamedTuple):
    """An image as it was acquired, and its cord.

    Attributes
    ----------
    image : (i, j, k) float32
        Intensities.
    grid
        Its lattice.
    cord : (i, j, k) bool or None
        Cord mask; None where there is none.
    source
        Who made the mask, in words.
    cut_mm
        How much of what a program found was cut off at the lower end as no cord, mm along S-I.
    """

    image: npt.NDArray[np.float32]
    grid: Grid
    cord: npt.NDArray[np.bool_] | None
    source: str
    cut_mm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportInput:
    """Everything that a session's page is assembled from.

    Attributes
    ----------
    plan, case, bundle
        The session, its prepared case and the model.
    labels, probability
        Lesion numbers and lesion probability in prepared space.
    lesions, measures
        Rows of the lesion table, and the session's row.
    fit
        Fit report as plain data.
    levels
        (name, bottom, top) of vertebral levels, positions s in mm.
    origin
        Where arc length counts from, in words; empty if not anatomical.
    natives
        Image (relative path) → what it shows and its cord.
    run
        Facts of the run: device, date, threshold, cord method, seed.
    versions
        Name to version of this program and the libraries behind the numbers.
    links
        (text, path relative to the page).
    engine
        Whose network found the lesions and what its values mean; empty for this program's own.
    outliers
        What the last run of the group level said stands out; None where it has not judged the session.
    """

    plan: Plan
    case: PreparedCase
    bundle: ModelBundle
    labels: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float32]
    lesions: Sequence[Row]
    measures: Row
    fit: Mapping[str, object]
    levels: Sequence[tuple[str, float, float]]
    origin: str
    natives: Mapping[str, NativeCord]
    run: Mapping[str, str]
    versions: Mapping[str, str]
    links: Sequence[tuple[str, str]] = ()
    engine: Mapping[str, object] = field(default_factory=lambda: NOTHING)
    outliers: Sequence[str] | None = None


def assemble_report(given: ReportInput) -> SessionReport:
    """Assemble the records of one session's page; arrays are passed on, not copied."""
    case, plan = given.case, given.plan
    geometry = _geometry(case)
    views = tuple(_view(given, geometry, name) for name in used_sequences(case, geometry))
    methods = compose(_methods_facts(given, geometry))
    beyond = _beyond(given, geometry)
    return SessionReport(
        label=plan.label,
        dataset=plan.dataset.rstrip("/").rsplit("/", 1)[-1],
        date=given.run.get("started", ""),
        sequences=views,
        absent=_absent(given, geometry),
        left_out=plan.left_out,
        anchor=geometry.anchor,
        spacing_mm=float(geometry.grid.spacing[2]),
        labels=given.labels,
        probability=given.probability,
        cord=None if case.cord is None else case.cord >= 0.5,
        levels=_level_slices(given.levels, geometry),
        origin=given.origin,
        lesions=tuple(given.lesions),
        measures=given.measures,
        outliers=None if given.outliers is None else tuple(given.outliers),
        flags=(
            *derive_flags(views, given.measures, lesions=given.lesions, beyond=beyond),
            *_warnings(given),
        ),
        beyond=beyond,
        model=given.bundle.name,
        card=given.bundle.summary,
        threshold=float(given.run["threshold"]),
        seeded=_seeded(given),
        device=given.run.get("device", ""),
        versions=given.versions,
        checksums={given.bundle.name: given.bundle.weights_sha256},
        seeds={"random seed": given.run.get("seed", "0")},
        settings=_settings(given),
        correction=correction_words(given.measures),
        normalize=given.bundle.recipe.normalize,
        methods=methods.text,
        references=methods.references,
        links=tuple(given.links),
    )


def _beyond(given: ReportInput, geometry: Geometry) -> Beyond | None:
    """The sequence that shows most beyond the ends of the cord masks."""
    if given.case.cord is None:
        return None
    return most_beyond(beyond_masks(geometry, given.case.cord, levels=given.levels))


def _methods_facts(given: ReportInput, geometry: Geometry) -> MethodsFacts:
    recipe, rules = given.bundle.recipe, given.bundle.recipe.inference
    used = used_sequences(given.case, geometry)
    slabs = tuple((key, len(geometry.slabs_of(key))) for key in geometry.keys)
    moved = [
        item
        for item in _list(given.fit, "sequences")
        if any(slab.get("accepted") for slab in _list(item, "slabs"))
    ]
    return MethodsFacts(
        version=given.versions.get("bids_scseg", ""),
        sequences=tuple((key, recipe.rule(key).description) for key in used),
        absent=tuple(name for name in recipe.sequence_names if name not in used),
        anchor=geometry.anchor,
        cord_sources={key: _cord_sources(given, geometry, key) for key in geometry.keys},
        slabs=tuple((key, count) for key, count in slabs if count > 1),
        registered=tuple(str(item["name"]) for item in moved),
        spacing_mm=float(geometry.grid.spacing[2]),
        window_vox=geometry.grid.shape[:2],
        margin_mm=recipe.grid.margin_mm,
        given_geometry=_given_geometry(given.fit),
        model=given.bundle.name,
        model_sha256=given.bundle.weights_sha256,
        impute=given.bundle.network.impute,
        skips=given.bundle.network.skips,
        threshold=float(given.run["threshold"]),
        seed_thresholds=_seed_thresholds(given),
        min_volume_mm3=float(given.run.get("min_volume_mm3", rules.min_volume_mm3)),
        connectivity=rules.connectivity,
        flips=rules.flips,
        normalize=recipe.normalize,
        by_patch=rules.by_patch,
        device=given.run.get("device", ""),
        engine=given.bundle.engine,
        engine_release=str(given.engine.get("release", "")),
        engine_meaning=str(given.engine.get("meaning", "")),
        corrected=", ".join(_corrected_files(given.measures)),
        mask_origin=str(given.measures.get("mask_origin") or "model"),
        origin=given.origin,
        levels_from=str(given.measures.get("levels_from") or ""),
        versions=given.versions,
    )


def _cord_sources(given: ReportInput, geometry: Geometry, key: str) -> tuple[str, ...]:
    """Who drew the cord masks of a sequence, for the methods text; images without a mask do not count."""
    natives = [given.natives[slab.file] for slab in geometry.slabs_of(key) if slab.file in given.natives]
    return tuple(dict.fromkeys(_cord_source(one.source) for one in natives if one.cord is not None))


def _cord_source(said: str) -> str:
    """The program that a source names; masks of people keep their words, whatever their files are called."""
    kind = next((kind for words, kind in CORD_SOURCES.items() if said.startswith(words)), "")
    return kind if kind in CORD_PROGRAMS else said


def _geometry(case: PreparedCase) -> Geometry:
    if case.geometry is None:
        raise ValueError("a case without geometry has no report")
    return case.geometry


def _view(given: ReportInput, geometry: Geometry, name: str) -> SequenceView:
    channel = given.case.sequences.index(name)
    line, anchor = geometry.centerlines.get(name), geometry.centerlines.get(geometry.anchor)
    s = geometry.s_mm
    fit = next((item for item in _list(given.fit, "sequences") if item.get("name") == name), {})
    slabs = geometry.slabs_of(name)
    return SequenceView(
        name=name,
        description=given.bundle.recipe.rule(name).description,
        natives=tuple(_native(given, geometry, slab) for slab in slabs if slab.file in given.natives),
        prepared=given.case.image[channel],
        coverage=given.case.coverage[channel],
        unaligned=_unaligned(given, geometry, name),
        offset_mm=None if line is None or anchor is None else line.at(s) - anchor.at(s),
        measured=None if line is None else line.is_measured(s),
        examined_mm=_number(given.measures.get(f"{name}_examined_mm")),
        extrapolated_share=_number(fit.get("extrapolated_share"), otherwise=0.0),
        cord_source="; ".join(
            dict.fromkeys(given.natives[slab.file].source for slab in slabs if slab.file in given.natives)
        ),
        notes=_slab_notes(fit),
    )


def _native(given: ReportInput, geometry: Geometry, slab: Slab) -> NativeImage:
    native = given.natives[slab.file]
    shape = geometry.grid.shape
    index = np.zeros((shape[2], 3))
    index[:, 0], index[:, 1], index[:, 2] = (shape[0] - 1) / 2, (shape[1] - 1) / 2, np.arange(shape[2])
    points = transform_points(slab.xfm, geometry.to_world(index, key=slab.key))
    inside = native.grid.contains(native.grid.to_index(points))
    line = geometry.centerlines.get(slab.key)
    measured = np.ones(len(points), bool) if line is None else line.is_measured(geometry.s_mm)
    return NativeImage(
        file=slab.file,
        image=native.image,
        grid=native.grid,
        cord=native.cord,
        cut_mm=native.cut_mm,
        centerline_ras=points[inside],
        measured=measured[inside],
    )


def _unaligned(given: ReportInput, geometry: Geometry, name: str) -> npt.NDArray[np.float32] | None:
    """The sequence in the anchor's window, as if no centerline of its own were known."""
    anchor = geometry.centerlines.get(geometry.anchor)
    slabs = geometry.slabs_of(name)
    if anchor is None or name == geometry.anchor or any(slab.file not in given.natives for slab in slabs):
        return None
    shifted = replace(geometry, centerlines={**geometry.centerlines, name: anchor})
    volume, _ = shifted.apply([given.natives[slab.file].image for slab in slabs], key=name)
    return volume


def _absent(given: ReportInput, geometry: Geometry) -> tuple[AbsentSequence, ...]:
    used = used_sequences(given.case, geometry)
    handling = "" if given.engine else imputation(_as_fitted(given.plan, used, geometry.anchor))
    reasons = dict.fromkeys(geometry.keys, "it is constant or does not cover the cord")
    reasons |= {
        name: reason
        for _, reason in given.plan.left_out
        for name in given.plan.missing
        if reason == not_asked_for(name)
    }
    reasons |= {str(item[0]): str(item[1]) for item in _pairs(given.fit, "dropped")}
    return tuple(
        AbsentSequence(
            name=rule.name,
            description=rule.description,
            reason=reasons.get(rule.name, "no file of the session matches"),
            handling=handling,
        )
        for rule in given.bundle.recipe.sequences
        if rule.name not in used
    )


def used_sequences(case: PreparedCase, geometry: Geometry) -> tuple[str, ...]:
    """Sequences that the network saw; one in the geometry may be constant or lie beside the cord."""
    flags = zip(case.sequences, case.available, strict=True)
    return tuple(name for name, available in flags if available and name in geometry.keys)


def _as_fitted(plan: Plan, used: Sequence[str], anchor: str) -> Plan:
    """The plan as it came about, after images without a cord have dropped out."""
    names = [*plan.available, *plan.missing]
    return replace(
        plan,
        sequences=tuple(sequence for sequence in plan.sequences if sequence.name in used),
        missing=tuple(name for name in names if name not in used),
        anchor=anchor,
    )


def _warnings(given: ReportInput) -> tuple[Flag, ...]:
    """Warnings of model, plan and fit that the derived flags do not already hold."""
    loud = session_mismatch(given.bundle, given.plan, cord_method=given.run.get("cord_method", ""))
    fit = [str(text) for text in _list_of_text(given.fit, "warnings")]
    flags = [
        Flag(
            severity="caution",
            title="Slab seam mismatch"
            if "at the seam" in text or "where its header says" in text
            else "Preparation",
            text=text,
        )
        for text in fit
        if not any(part in text for part in ALREADY_DERIVED)
    ]
    return (
        *_engine_flags(given.engine),
        *_correction_flags(given.measures),
        *(Flag(severity="serious", title=MISMATCH, text=f"{text}.", remedy=MISMATCH_REMEDY) for text in loud),
        *flags,
        *(
            Flag(severity="note", title="Choice of files", text=text)
            for text in given.plan.warnings
            if text not in loud
        ),
    )


def correction_words(measures: Row) -> str:
    """That a reader corrected the lesions, and what came of it, in a sentence; empty where nobody did."""
    files, found = _corrected_files(measures), measures.get("correction")
    if not files or not isinstance(found, Mapping):
        return ""
    kept, redrawn = (int(_number(found.get(key), otherwise=0)) for key in ("kept", "redrawn"))
    return (
        f"Lesions are those of the manual correction {', '.join(files)}: {kept} as the model drew "
        f"{'it' if kept == 1 else 'them'}, {redrawn} as the reader did."
    )


def _corrected_files(measures: Row) -> list[str]:
    found = measures.get("correction")
    return [str(item.get("file")) for item in _list(found, "files")] if isinstance(found, Mapping) else []


def _correction_flags(measures: Row) -> tuple[Flag, ...]:
    """What a reader must know of a correction; nothing where there is none."""
    found = measures.get("correction")
    if not isinstance(found, Mapping):
        return ()
    said = Flag(
        severity="note",
        title="Lesions corrected by hand",
        text=f"{correction_words(measures)} Probabilities, and the quality metrics that rest on them, are "
        "the model's.",
    )
    more = (
        Flag(severity="caution", title="Limits of the correction", text=f"{text[0].upper()}{text[1:]}.")
        for text in _list_of_text(found, "notes")
    )
    return (said, *more)


def _engine_flags(engine: Mapping[str, object]) -> tuple[Flag, ...]:
    """What the values of another program's network are; nothing for this program's own."""
    if not engine:
        return ()
    text = f"{engine.get('meaning')}. Thresholds and smallest lesion were not validated for it."
    return (
        Flag(
            severity="caution",
            title=f"Lesions by {engine.get('program')} ({engine.get('name')})",
            text=f"Wherever this page says probability, read: {text}",
            remedy="Choose a threshold on cases of your own before comparing volumes.",
        ),
    )


def _settings(given: ReportInput) -> dict[str, str]:
    """What the run was set to, beyond model, threshold and device."""
    smallest = given.run.get("min_volume_mm3", given.bundle.recipe.inference.min_volume_mm3)
    return {
        "Seed threshold": _seeded(given) or "none",
        "Smallest lesion": f"{float(smallest):g} mm³",
        "Lesion masks": _origin_words(given.measures),
        "cord masks": given.run.get("cord_method", ""),
        "Vertebral levels": str(given.measures.get("levels_from") or "none"),
        "Geometry": _given_geometry(given.fit) or "fitted",
        **_engine_settings(given.engine),
        **({"Outputs verified": given.run["verified"]} if "verified" in given.run else {}),
    }


def _seed_thresholds(given: ReportInput) -> tuple[float, float]:
    """What every lesion reaches somewhere, and where one sequence alone sees; 0 in older sessions."""
    run = given.run
    return float(run.get("seed_threshold", 0.0)), float(run.get("seed_threshold_alone", 0.0))


def _seeded(given: ReportInput) -> str:
    """Which probability a lesion reaches somewhere, in words; empty without such a rule."""
    several, alone = _seed_thresholds(given)
    if not alone:
        return f"{several:g}" if several else ""
    one = f"{alone:g} where one sequence alone sees"
    return f"{several:g} ({one})" if several else one


def _origin_words(measures: Row) -> str:
    found = measures.get("correction")
    files = _list(found, "files") if isinstance(found, Mapping) else []
    sums = ", ".join(f"{item.get('file')}, SHA-256 {str(item.get('sha256'))[:12]}" for item in files)
    return f"{measures.get('mask_origin') or 'model'}{f' ({sums})' if sums else ''}"


def _given_geometry(fit: Mapping[str, object]) -> str:
    """Name and checksum of the geometry that was applied instead of a fit; empty where one was fitted."""
    given = fit.get("geometry")
    return f"{given['file']}, SHA-256 {str(given['sha256'])[:12]}" if isinstance(given, Mapping) else ""


def _engine_settings(engine: Mapping[str, object]) -> dict[str, str]:
    if not engine:
        return {}
    outputs = engine.get("outputs")
    kinds = sorted(set(outputs.values())) if isinstance(outputs, Mapping) else []
    return {
        "Lesion engine": f"{engine.get('program')} {engine.get('release')}: {engine.get('command')}",
        "Its output": ", ".join(str(kind) for kind in kinds),
    }


def _slab_notes(fit: Mapping[str, object]) -> tuple[str, ...]:
    notes = []
    for slab in _list(fit, "slabs")[1:]:
        if slab.get("reason") == GIVEN:
            notes.append(f"slab {GIVEN}")
        elif slab.get("accepted"):
            notes.append(
                f"slab moved by {_number(slab.get('shift_mm')):.1f} mm and "
                f"{_number(slab.get('rotation_deg')):.1f}° by registration"
            )
        else:
            notes.append(f"slab where its header says ({slab.get('reason')})")
    return tuple(notes)


def _level_slices(
    levels: Sequence[tuple[str, float, float]], geometry: Geometry
) -> tuple[tuple[str, float, float], ...]:
    """Levels in slices of the grid; those that it reaches in part are among them."""
    start, step, count = geometry.s_mm[0], geometry.grid.spacing[2], geometry.grid.shape[2]
    placed = [(name, float((low - start) / step), float((high - start) / step)) for name, low, high in levels]
    return tuple((name, low, high) for name, low, high in placed if low <= count - 1 and high > 0)


def _number(value: object, *, otherwise: float = float("nan")) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _list(data: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    found = data.get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list | tuple) else []


def _list_of_text(data: Mapping[str, object], key: str) -> list[str]:
    found = data.get(key)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list | tuple) else []


def _pairs(data: Mapping[str, object], key: str) -> list[Sequence[object]]:
    found = data.get(key)
    return (
        [item for item in found if isinstance(item, list | tuple) and len(item) == 2]
        if isinstance(found, list | tuple)
        else []
    )
