"""A session prepared by a geometry that was fitted before: applied, not fitted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.preprocess.frames import Estimates, SlabEstimate
from bids_scseg.preprocess.fuse import SlabFit
from bids_scseg.preprocess.prepare import (
    CordMasks,
    FitReport,
    NativeImages,
    NativeSlab,
    SequenceReport,
    apply,
    blank_sentences,
    clean_image,
    matching,
    report_sentences,
    sequence_report,
)
from bids_scseg.recipe.model import Recipe
from bids_scseg.space.geometry import Geometry

GIVEN = "placed by the geometry given"


def prepare_given(
    geometry: Geometry, images: NativeImages, cords: CordMasks, recipe: Recipe
) -> tuple[PreparedCase, FitReport]:
    """Apply a geometry to the images that it was fitted to.

    Cord masks are used for intensities, coverage of the cord and measures; they move nothing. How far they
    lie from the geometry's centerlines is in the report, as after a fit.

    Parameters
    ----------
    geometry
        Of an earlier fit of this session.
    images, cords, recipe
        As for :func:`~bids_scseg.preprocess.prepare.prepare_session`. Sequences that the geometry has no
        place for are left out, and so are places without images.

    Returns
    -------
    PreparedCase, FitReport

    Raises
    ------
    GeometryError
        If the anchor has no image, or a slab of a sequence has none of its file and lattice.
    CordNotFoundError
        If no sequence has a cord.
    """
    kept = restrict(geometry, [key for key in geometry.keys if images.get(key)])
    session = {key: _stack(kept, images, cords, key) for key in kept.keys}
    if recipe.frame == "centerline" and not any(
        n.cord is not None for stack in session.values() for n in stack
    ):
        raise CordNotFoundError(
            "no sequence of this session shows the cord",
            expected="an image in which the cord is found, also where the geometry is given",
            remedy="check the cord masks, or provide them in a derivatives folder",
        )
    case = apply(
        kept,
        {key: [(n.data, n.grid, n.file) for n in stack] for key, stack in session.items()},
        recipe,
        cords={
            key: [n.weights if n.weights is not None else n.cord for n in stack]
            for key, stack in session.items()
        },
    )
    reports = _reports(kept, session)
    strangers = [name for name in recipe.sequence_names if images.get(name) and name not in kept.keys]
    return case, FitReport(
        anchor=kept.anchor,
        sequences=reports,
        dropped=tuple((name, "the geometry given has no place for it") for name in strangers),
        warnings=(
            *(line for report in reports for line in report_sentences(report)),
            *blank_sentences(case, kept.keys),
        ),
    )


def restrict(geometry: Geometry, keys: Sequence[str]) -> Geometry:
    """The same geometry for some of its sequences; grid and anchor stay.

    Raises
    ------
    GeometryError
        If the anchor is not among them.
    """
    if geometry.anchor not in keys:
        raise GeometryError(
            f"the geometry given stands on {geometry.anchor}, of which no image can be used",
            expected=f"an image of {geometry.anchor}",
            remedy="fit the geometry anew: leave --geometry out",
        )
    lines = {key: line for key, line in geometry.centerlines.items() if key in keys}
    slabs = tuple(slab for slab in geometry.slabs if slab.key in keys)
    return replace(geometry, slabs=slabs, centerlines=lines)


def _stack(geometry: Geometry, images: NativeImages, cords: CordMasks, key: str) -> list[NativeSlab]:
    """Images of a sequence with cleaned cords, in the order of the geometry's slabs."""
    masks = cords.get(key) or [None] * len(images[key])
    return [clean_image(images[key][n], masks[n]) for n in matching(geometry, images[key], key)]


def _reports(geometry: Geometry, session: Mapping[str, list[NativeSlab]]) -> tuple[SequenceReport, ...]:
    estimates = Estimates(
        anchor=geometry.anchor,
        slabs=tuple(
            SlabEstimate(slab=slab, cord=native.cord, weights=native.weights)
            for key, stack in session.items()
            for slab, native in zip(geometry.slabs_of(key), stack, strict=True)
        ),
    )
    return tuple(
        sequence_report(
            key,
            stack,
            [SlabFit(xfm=slab.xfm, scale=slab.scale, reason=GIVEN) for slab in geometry.slabs_of(key)],
            geometry,
            estimates,
        )
        for key, stack in session.items()
    )
